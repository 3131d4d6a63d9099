"""Names that a package exports without importing its modules before they are used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(
    package: str, modules: dict[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` for a package.

    So `import minicst.sparse.estimators` pulls in no tape: the import graph stays the argument.

    Args:
        package: name of the package.
        modules: {module: names it defines}; a module without names is exported itself.
    """
    where = {name: module for module, names in modules.items() for name in names}
    whole = {module.rsplit(".", 1)[-1]: module for module, names in modules.items() if not names}

    def get(name: str) -> Any:
        if name in where:
            return getattr(import_module(where[name]), name)
        if name in whole:
            return import_module(whole[name])
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    names = sorted([*where, *whole])
    return get, lambda: names, names

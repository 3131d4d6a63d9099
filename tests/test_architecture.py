"""The import graph is the argument of the paper: read from each module's own import statements.

An area may import areas below it only. Package __init__ files name their exports as strings and
import them on first use, so they don't count.
"""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import minicst

PACKAGE = Path(minicst.__file__).parent
TESTS = Path(__file__).parent

# Area -> rank. lessons, figures -> cli -> training -> methods -> sparse -> models -> nn ->
# autograd -> backend -> numpy. Leaves have rank 0.
RANK = {
    "_lazy": 0,
    "randomness": 0,
    "data": 0,
    "backend": 1,
    "autograd": 2,
    "functional": 2,
    "nn": 3,
    "optim": 4,
    "models": 4,
    "sparse": 5,
    "methods": 6,
    "training": 8,
    "cli": 10,
    "__main__": 11,
}
# What a leaf or a low area may use beside the areas of a lower rank.
LEAVES_FOR_ALL = {"_lazy", "randomness"}
# Modules that appear around the loop (checkpoint, settings, plots, ...): above the methods, and
# nothing of rank 6 or less may import them. Among themselves only cycles are forbidden.
AROUND_THE_LOOP = 8
ARRAYS_ONLY = ("masks", "estimators", "rules", "projection", "theory", "moments", "proof", "bias")

MODULES = sorted(
    path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    for path in PACKAGE.rglob("*.py")
)


def path_of(module):
    return PACKAGE.parent / (module.replace(".", "/") + ".py")


def imported(source, module_level_only=False):
    """Every dotted name that a source file imports; `from a import b` gives a.b."""
    tree = ast.parse(source)
    names = []
    nodes = list(ast.walk(tree))
    if module_level_only:
        inside = {
            child
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.walk(node)
        }
        nodes = [node for node in nodes if node not in inside]
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full: from minicst.x import y"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def area(name):
    """Area of minicst that a dotted name belongs to; None outside of minicst."""
    parts = name.split(".")
    if parts[0] != "minicst":
        return None
    return parts[1] if len(parts) > 1 else "__init__"


def rank(name):
    return RANK.get(name, AROUND_THE_LOOP)


def violations(module, source):
    own = area(module)
    found = []
    for name in imported(source):
        other = area(name)
        if other is None or other == own or other in LEAVES_FOR_ALL:
            continue
        around = rank(own) == rank(other) == AROUND_THE_LOOP
        same_floor = rank(own) == rank(other) == RANK["autograd"]  # functional is its face
        if not (rank(other) < rank(own) or around or same_floor):
            found.append(f"{module} imports {name}")
        if other == "data" and rank(own) < RANK["methods"]:
            found.append(f"{module} imports {name}: networks don't know data")
    return found


@pytest.mark.parametrize("module", [m for m in MODULES if m != "minicst.__init__"])
def test_nothing_imports_upward(module):
    assert not violations(module, path_of(module).read_text())


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("minicst.nn.layers", "from minicst.sparse.masks import sample_mask"),
        ("minicst.backend.base", "import minicst.autograd"),
        ("minicst.autograd.conv", "from minicst.nn import Module"),
        ("minicst.nn.module", "import minicst.optim"),
        ("minicst.models.vgg", "from minicst.sparse import cut"),
        ("minicst.sparse.masked_form", "from minicst.methods.dense import Dense"),
        ("minicst.methods.dense", "from minicst.training import train"),
        ("minicst.methods.dense", "import minicst.checkpoint"),
        ("minicst.training", "from minicst import cli"),
        ("minicst.plots", "from minicst.cli import main"),
        ("minicst.data.loader", "from minicst.backend import get_backend"),
        ("minicst.randomness", "from minicst.data import shapes"),
        ("minicst.sparse.liveness", "from minicst.data import Batch"),
    ],
)
def test_the_rule_sees_upward_imports(module, line):
    assert violations(module, f"def f():\n    {line}\n")


def test_there_are_no_cycles_between_modules():
    known = set(MODULES)
    edges = {}
    for module in MODULES:
        edges[module] = set()
        for name in imported(path_of(module).read_text(), module_level_only=True):
            for candidate in (name, name.rpartition(".")[0]):
                if candidate in known and candidate != module:
                    edges[module].add(candidate)
                    break
    done, walking = set(), []

    def visit(module):
        assert module not in walking, " -> ".join([*walking, module])
        if module in done:
            return
        walking.append(module)
        for other in sorted(edges[module]):
            visit(other)
        walking.pop()
        done.add(module)

    for module in MODULES:
        visit(module)
    assert done == known


@pytest.mark.parametrize(
    "name", [name for name in ARRAYS_ONLY if (PACKAGE / "sparse" / f"{name}.py").exists()]
)
def test_arrays_only(name):
    """Masks, estimators, projection and theory need two losses: no Tensor, no tape, no network.

    They may import NumPy, the standard library and each other.
    """
    siblings = tuple(f"minicst.sparse.{other}" for other in ARRAYS_ONLY)
    for imported_name in imported((PACKAGE / "sparse" / f"{name}.py").read_text()):
        if imported_name.startswith(siblings):
            continue
        top = imported_name.split(".")[0]
        assert top == "numpy" or top in sys.stdlib_module_names, imported_name


def test_the_arrays_only_modules_are_there():
    for name in ("masks", "estimators", "projection"):
        assert (PACKAGE / "sparse" / f"{name}.py").exists()


def loaded_by(statement):
    """Top-level and minicst modules in sys.modules after a statement, in a fresh process."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    # -W ignore: what numpy warns about at import is not the question here.
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_import_minicst_is_light():
    loaded = loaded_by("import minicst")
    assert "minicst" in loaded
    assert not loaded & {"cupy", "matplotlib", "scipy", "tyro", "rich", "torch"}


def test_no_area_up_to_the_methods_loads_heavy_libraries():
    areas = [name for name in RANK if rank(name) <= RANK["methods"]]
    areas = [name for name in areas if any(area(module) == name for module in MODULES)]
    statement = "; ".join(f"import minicst.{name}" for name in areas)
    assert not loaded_by(statement) & {"cupy", "matplotlib", "tyro", "rich", "torch"}


def test_estimators_load_no_tape():
    loaded = loaded_by("import minicst.sparse.estimators, minicst.sparse.projection")
    parts = {area(name) for name in loaded if name.startswith("minicst.")}
    assert parts <= {"sparse", "_lazy"}


def test_cupy_and_matplotlib_are_imported_where_they_are_used():
    for module in MODULES:
        for name in imported(path_of(module).read_text(), module_level_only=True):
            top = name.split(".")[0]
            assert top != "cupy" or module.startswith("minicst.backend.cupy"), module
            assert top != "matplotlib" or rank(area(module)) >= AROUND_THE_LOOP, module


TEST_FILES = sorted(TESTS.rglob("test_*.py"))


def asserts(tree):
    """Whether a syntax tree checks anything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name.startswith("assert_") or name in ("raises", "warns"):
                return True
    return False


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.relative_to(TESTS).as_posix())
def test_every_test_file_asserts_something(path):
    assert asserts(ast.parse(path.read_text()))


def test_the_check_for_assertions():
    assert asserts(ast.parse("def test():\n    with pytest.raises(ValueError):\n        f()"))
    assert asserts(ast.parse("np.testing.assert_allclose(1, 1)"))
    assert not asserts(ast.parse("def test():\n    print('assert', f())"))


def test_lessons_and_figures_are_not_imported_by_the_package():
    for module in MODULES:
        tops = {name.split(".")[0] for name in imported(path_of(module).read_text())}
        assert not tops & {"lessons", "figures", "tests"}, module


def test_no_lazy_name_is_shadowed_by_a_module_of_the_same_name():
    """Importing a submodule sets it as attribute of its package, in place of a lazy function."""
    for package in ("minicst", "minicst.sparse", "minicst.methods", "minicst.variance"):
        module = importlib.import_module(package)
        folder = PACKAGE.joinpath(*package.split(".")[1:])
        submodules = {path.stem for path in folder.glob("*.py")}
        for name in set(module.__all__) & submodules:
            # Such a name must mean the module itself, as in `minicst.functional`.
            assert module.__getattr__(name).__name__ == f"{package}.{name}"

"""The static site: the rendered lessons, README and the API's docstrings, by Sphinx and MyST."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import minicst
from minicst.lessons.find import all_lessons
from minicst.lessons.render import PAGES, index

# Areas of the package in the order in which data flows, and what stands beside each on the site.
AREAS = {
    "minicst.backend": "arrays, hot operations, the meter",
    "minicst.autograd": "the tape",
    "minicst.functional": "every operation as a function",
    "minicst.nn": "layers, the unit, networks",
    "minicst.models": "the networks by name",
    "minicst.optim": "optimizers and schedules",
    "minicst.sparse": "masks, estimators, projection, exact theory; cut, paste, accounting",
    "minicst.methods": "Algorithm 1, its controls, chain-rule methods",
    "minicst.data": "data sets and batches",
    "minicst.variance": "variances measured on a network",
    "minicst.bench": "times, roofline, memory",
    "minicst.checkpoint": "files of networks and runs",
    "minicst.randomness": "random streams named by a key",
}

CSS = "minicst.css"
CONF = {
    "project": "minicst",
    "extensions": ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"],
    "html_theme": "furo",
    "html_title": "minicst",
    "html_show_copyright": False,
    "default_role": "code",
    "napoleon_use_ivar": True,
    "autodoc_member_order": "bysource",
    "autodoc_typehints": "signature",
    "myst_heading_anchors": 3,
    # Types in signatures that several classes have an attribute of the name of: no harm.
    "suppress_warnings": ["ref.python"],
    "html_static_path": ["_static"],
    "html_css_files": [CSS],
}
# What a lesson printed is told from its code by a bar.
STYLE = """.highlight-text pre { border-left: 4px solid #0072b2; }
.document img { background: white; }
"""


def build_site(folder: Path, target: Path, says: Callable[[str], None]) -> None:
    """Build the site from the rendered pages of `folder`; a warning of Sphinx's is an error.

    Args:
        folder: of the lessons.
        target: folder of the site, made or filled anew.
        says: called with a line.

    Raises:
        ValueError: Sphinx isn't installed, no page is rendered, the target is no folder of a site,
            or Sphinx warns.
    """
    try:
        from sphinx.application import Sphinx

        importlib.import_module("myst_parser")
        importlib.import_module("furo")
    except ImportError as error:
        raise ValueError(
            f"the site needs Sphinx, MyST and furo ({error}): pip install -e '.[docs]'"
        ) from None
    if target.exists() and any(target.iterdir()) and not (target / "searchindex.js").exists():
        raise ValueError(f"--site {target}: there is something else in this folder; name a new one")
    with TemporaryDirectory(prefix="minicst_site_") as work:
        source = Path(work) / "source"
        _write_sources(folder, source)
        (source / "conf.py").write_text(
            "\n".join(f"{key} = {value!r}" for key, value in CONF.items())
            + "\nfrom minicst.lessons.site import setup  # noqa: E402\n"
        )
        built = Path(work) / "site"
        doctrees = Path(work) / "doctrees"
        app = Sphinx(source, source, built, doctrees, "html", status=None, warningiserror=True)
        app.build()
        if app.statuscode:
            raise ValueError(f"the site isn't written to {target}: Sphinx warned, see above")
        if target.exists():  # only now: a site that can't be built leaves the old one
            shutil.rmtree(target)
        shutil.copytree(built, target)
    says(f"site {target / 'index.html'}")


def _write_sources(folder: Path, source: Path) -> None:
    """Write what Sphinx reads: index, README, the lessons' pages, a page of API for each area."""
    pages, lessons = folder / PAGES, all_lessons(folder)
    missing = [x.path.stem for x in lessons if not (pages / f"{x.path.stem}.md").is_file()]
    if missing:
        raise ValueError(f"no page of {', '.join(missing)}: first minicst lesson --render all")
    shutil.copytree(pages, source / "lessons")
    shutil.copytree(folder / "solutions", source / "_files" / "solutions", ignore=_no_cache)
    for lesson in lessons:
        shutil.copy(lesson.path, source / "_files" / lesson.path.name)
        page = source / "lessons" / f"{lesson.path.stem}.md"
        text = page.read_text(encoding="utf-8")
        text = text.replace("(../../README.md#", "(../overview.md#")
        text = text.replace("(../solutions/", "(../_files/solutions/")
        _write(page, text.replace(f"(../{lesson.path.name})", f"(../_files/{lesson.path.name})"))
    stems = [f"lessons/{lesson.path.stem}" for lesson in lessons]
    table = index(lessons).replace(f"({PAGES}/", "(lessons/")
    _write(source / "lessons.md", f"{table}\n{_tree(*stems, hidden=True)}")
    for area, says in AREAS.items():
        _write(source / "api" / f"{area}.md", _api_page(area, says))
    rows = "\n".join(f"| [{area}](api/{area}.md) | {says} |" for area, says in AREAS.items())
    table = f"# API\n\n| module | |\n|---|---|\n{rows}\n"
    _write(source / "api.md", f"{table}\n{_tree(*(f'api/{area}' for area in AREAS), hidden=True)}")
    _write_overview(folder.parent, source)
    said = (minicst.__doc__ or "").removeprefix("minicst: ").strip()
    _write(
        source / "index.md",
        f"# minicst\n\n{said[0].upper()}{said[1:]}\n\n"
        "- [Overview](overview.md): what it does, what was measured, what held\n"
        "- [Lessons](lessons.md): the whole paper, step by step\n"
        "- [API](api.md): every module, with formulas and sources\n\n"
        + _tree("overview", "lessons", "api", hidden=True),
    )
    _write(source / "_static" / CSS, STYLE)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _no_cache(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


def _tree(*pages: str, hidden: bool = False) -> str:
    options = [":hidden:"] if hidden else [":maxdepth: 1"]
    return "\n".join(["```{toctree}", *options, "", *pages, "```", ""])


def _write_overview(root: Path, source: Path) -> None:
    """README with its pictures, its links into the lessons turned to the site's pages."""
    readme = root / "README.md"
    if not readme.is_file():  # an installation has lessons, no README
        _write(source / "overview.md", "# Overview\n")
        return
    text = readme.read_text(encoding="utf-8")
    for picture in sorted(set(re.findall(r"\]\((figures/[^)]+)\)", text))):
        if (root / picture).is_file():
            (source / picture).parent.mkdir(exist_ok=True)
            shutil.copy(root / picture, source / picture)
    text = text.replace("(lessons/README.md)", "(lessons.md)")
    text = text.replace("(lessons/pages/", "(lessons/")
    _write(source / "overview.md", text.replace("# minicst\n", "# Overview\n", 1))


def _api_page(area: str, says: str) -> str:
    """Modules of an area; a package's exports are described where they are defined."""
    module = importlib.import_module(area)
    parts = [f"# {area}", f"{says[0].upper()}{says[1:]}.", _automodule(area, members=False)]
    if not hasattr(module, "__path__"):
        parts[-1] = _automodule(area, members=True)
        return "\n\n".join(parts) + "\n"
    for inner in pkgutil.iter_modules(module.__path__):
        name = f"{area}.{inner.name}"
        if not inner.name.startswith("_") and _can_import(name):
            parts += [f"## {name}", _automodule(name, members=True)]
    return "\n\n".join(parts) + "\n"


def _automodule(name: str, members: bool) -> str:
    options = ["   :members:"] if members else []
    if name == "minicst.functional":
        # Its functions are at home in minicst.autograd: no second place in the index.
        options.append("   :no-index:")
    lines = ["```{eval-rst}", f".. automodule:: {name}", *options, "```"]
    return "\n".join(lines)


def _can_import(name: str) -> bool:
    """Whether a module can be imported here: those of CuPy's and MPI's sort can't everywhere."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def setup(app: Any) -> None:
    """What Sphinx calls: docstrings here are plain text, not reStructuredText."""
    app.connect("autodoc-process-docstring", _plain_docstring, priority=400)


def _plain_docstring(
    app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Escape what reStructuredText would take for markup; keep formulas in lines of their own."""
    made: list[str] = []
    in_section = False
    for blank, group in groupby(lines, lambda line: not line.strip()):
        paragraph = list(group)
        if blank:
            made += paragraph
            continue
        if not paragraph[0].startswith(" "):
            in_section = SECTION.fullmatch(paragraph[0]) is not None
        made += _section(paragraph) if in_section else _prose(paragraph)
    lines[:] = made


SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Yields|Notes?|Examples?):")
SOURCE = re.compile(r"^(Paper|Differs):")


def _section(paragraph: list[str]) -> list[str]:
    return [_escaped(line) for line in paragraph]


def _prose(paragraph: list[str]) -> list[str]:
    if all(line.startswith("    ") for line in paragraph):
        return ["::", "", *paragraph]
    if SOURCE.match(paragraph[0]):
        text = "\n".join(_escaped(line.strip()) for line in paragraph)
        return re.sub(r"^(Paper|Differs):", r"\n**\1:**", text, flags=re.M).splitlines()[1:]
    if any(line.startswith("    ") for line in paragraph):  # a formula among its words
        return [f"| {_escaped(line)}" for line in paragraph]
    return [_escaped(line) for line in paragraph]


def _escaped(line: str) -> str:
    """Escape markup outside of `code`."""
    parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([\\*|])", r"\\\1", parts[i])
        parts[i] = re.sub(r"_(?=\W|$)", r"\\_", parts[i])
    return "".join(part if not part.startswith("`") else f"``{part.strip('`')}``" for part in parts)

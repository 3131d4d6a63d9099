"""minicst and the stand-in use names and keywords that the real CuPy has.

Read from minicst's source and held against the module `cupy`, which imports without a GPU. Where it
isn't installed the source is held against the stand-in alone.
"""

import ast
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import strict_cupy

import minicst

PACKAGE = Path(minicst.__file__).parent
ROOTS = ("xp", "cupy", "cupyx")  # what an array module is called, or an attribute that holds one
GPU_ONLY = re.compile(r"/(cupy_\w+|cuda_kernels|probe)\.py$")  # here xp is cupy, never numpy
# What only a GPU has, and where code asks for it after a look at the device.
OF_THE_GPU = ("cuda", "get_default_memory_pool", "__version__")
MEASURES = re.compile(r"^minicst/(bench|selftest)/")
# What calls return, where it isn't the class itself or, outside of cuda and _core, an array.
RETURNS = {
    "asnumpy": None,
    "array_split": None,
    "split": None,
    "cuda.get_current_stream": "cuda.Stream",
    "get_default_memory_pool": "cuda.MemoryPool",
    "get_default_pinned_memory_pool": "cuda.PinnedMemoryPool",
    "cuda.Stream().record": "cuda.Event",
}
# Keywords that go through **kwargs, from the functions' own text.
THROUGH_KWARGS = {"pad": {"constant_values"}, "einsum": {"dtype", "optimize"}}
# Methods of arrays that other objects have too.
SHARED_METHODS = {"copy", "sort", "index", "format", "partition", "view", "set", "get"}


# ---- Reading the source --------------------------------------------------------------------------


@dataclass(frozen=True)
class Use:
    """One name of an array module in the source.

    Attributes:
        root: "xp", "cupy" or "cupyx".
        name: what follows it, "()" where a call's result is meant.
        keywords: of the call; None: it isn't called.
        n_positional: likewise; None: unknown, because of *.
        place: file and line.
    """

    root: str
    name: str
    keywords: tuple[str, ...] | None
    n_positional: int | None
    place: str


class Reader(ast.NodeVisitor):
    """Collects the uses in one file.

    It follows `core = self.xp._core`, `self.stream = xp.cuda.Stream()`, and methods without
    arguments that return such a thing.
    """

    def __init__(self, file):
        self.file, self.uses, self.methods = file, [], []
        self.function = ""
        self.aliases = {}  # source of a name or attribute -> what it stands for

    def meaning(self, node):
        """Dotted name from an array module on, as "xp.cuda.Device()"; None for anything else."""
        if (known := self.aliases.get(ast.unparse(node))) is not None:
            return known
        if isinstance(node, ast.Name):
            return node.id if node.id in ROOTS else None
        if isinstance(node, ast.Attribute):
            if node.attr in ROOTS:
                return node.attr
            base = self.meaning(node.value)
            return base and f"{base}.{node.attr}"
        if isinstance(node, ast.Call):
            base = self.meaning(node.func)
            return base and base + "()"
        return None

    def note(self, node, call=None):
        dotted = self.meaning(node)
        root, _, name = (dotted or "").partition(".")
        if not name:
            return
        keywords = n_positional = None
        if call is not None:
            keywords = tuple(k.arg for k in call.keywords if k.arg)
            starred = any(isinstance(a, ast.Starred) for a in call.args)
            starred = starred or any(k.arg is None for k in call.keywords)
            n_positional = None if starred else len(call.args)
        place = f"{self.file}:{node.lineno}"
        self.uses.append(Use(root, name, keywords, n_positional, place))

    def visit_Assign(self, node):
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)
            for one, value in pairs:
                self.bind(one, value)

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        if node.value is not None:
            self.bind(node.target, node.value)

    def bind(self, target, value):
        if isinstance(target, (ast.Name, ast.Attribute, ast.Call)):
            self.aliases.pop(ast.unparse(target), None)
            meaning = self.meaning(value)
            # Arrays are called x in one place and y in the next: not followed.
            if meaning is not None and re.search(r"\.cuda\b|\._core\b|_pool\(\)", meaning):
                self.aliases[ast.unparse(target)] = meaning

    def visit_Return(self, node):
        self.generic_visit(node)
        if node.value is not None and self.function:
            self.bind(ast.parse(f"self.{self.function}()", mode="eval").body, node.value)

    def visit_FunctionDef(self, node):
        outer, self.function = dict(self.aliases), node.name
        self.generic_visit(node)
        kept = {name: what for name, what in self.aliases.items() if name.startswith("self.")}
        self.aliases = outer | kept

    def visit_Call(self, node):
        if self.is_array_method(node):
            keywords = tuple(k.arg for k in node.keywords if k.arg)
            self.methods.append((node.func.attr, keywords, f"{self.file}:{node.lineno}"))
        self.note(node.func, node)
        for child in ast.iter_child_nodes(node):
            if child is node.func and isinstance(child, ast.Attribute):
                self.visit(child.value)  # its own name was just noted
            else:
                self.visit(child)

    def is_array_method(self, call):
        """Whether a call looks like one of a method that arrays have and few others."""
        function = call.func
        if not isinstance(function, ast.Attribute) or self.meaning(function) is not None:
            return False
        name, of_numpy = function.attr, ast.unparse(function.value) == "np"
        if name in ("get", "set"):
            return bool(call.keywords)  # those of other objects take none
        known = callable(getattr(np.ndarray, name, None)) and name not in SHARED_METHODS
        return known and not of_numpy and not name.startswith("_")

    def visit_Attribute(self, node):
        if isinstance(node.ctx, ast.Load):
            self.note(node)
        self.visit(node.value)


def read(source, file="file.py"):
    """Uses of array modules, and calls of array methods, in a source text."""
    tree = ast.parse(source)
    reader = Reader(file)
    reader.visit(tree)  # learns what self.xyz stands for
    again = Reader(file)
    again.aliases = {n: what for n, what in reader.aliases.items() if n.startswith("self.")}
    again.visit(tree)
    return again.uses, again.methods


def uses_of_minicst():
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        found += read(path.read_text(), path.relative_to(PACKAGE.parent).as_posix())[0]
    return found


# ---- Signatures ----------------------------------------------------------------------------------


class Unknown(Exception):
    """Nothing tells what a function takes."""


def signature_of(function):
    """Parameters of a function: from Python, or from the first line of its documentation.

    CuPy's compiled functions and its ufuncs have no signature for inspect. Cython and CuPy write it
    in front of the documentation: "name(self, type a, b=None, *, c=1) -> type".
    """
    text = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ").replace("\\*", "*")
    written = re.match(r"[\w.]+\((.*?)\)(\s*->.*)?$", text.strip())
    try:
        signature = inspect.signature(function)
        kept = [p for p in signature.parameters.values() if p.name != "self"]
        return signature.replace(parameters=kept)
    except (TypeError, ValueError):
        pass
    if written is None and inspect.isclass(function):
        written = re.match(r"[\w.]+\((.*?)\)$", (function.__init__.__doc__ or "").split("\n")[0])
    if written is None:
        raise Unknown(getattr(function, "__name__", repr(function)))
    return parsed(written[1])


def parsed(parameters):
    """A signature out of "self, int a, b=None, /, *, c=(1, 2), **kw"."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    found = []
    for part in re.split(r",\s*(?![^()\[\]]*[)\]])", parameters):
        name = part.split("=")[0].split(":")[0].replace("&", " ").split()
        if part.strip() == "/":
            found = [p.replace(kind=inspect.Parameter.POSITIONAL_ONLY) for p in found]
        elif part.strip() == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
        elif part.strip().startswith("**"):
            found.append(inspect.Parameter(part.strip()[2:], inspect.Parameter.VAR_KEYWORD))
        elif part.strip().startswith("*"):
            found.append(inspect.Parameter(part.strip()[1:], inspect.Parameter.VAR_POSITIONAL))
            kind = inspect.Parameter.KEYWORD_ONLY
        elif name and name[-1] != "self":
            default = None if "=" in part else inspect.Parameter.empty
            found.append(inspect.Parameter(name[-1], kind, default=default))
    return inspect.Signature(found)


def takes(function, keywords, n_positional=None, name=""):
    """Say what of a call a function doesn't take; None if it takes all of it."""
    parameters = signature_of(function).parameters.values()
    kinds = inspect.Parameter
    named = {
        p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    named |= THROUGH_KWARGS.get(name, set())
    if missing := [k for k in keywords if k not in named]:
        if any(p.kind == kinds.VAR_KEYWORD for p in parameters) and name not in THROUGH_KWARGS:
            raise Unknown(name)
        return f"no keyword {', '.join(missing)}"
    places = [
        p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    any_number = any(p.kind == kinds.VAR_POSITIONAL for p in parameters)
    if n_positional is not None and not any_number and n_positional > len(places):
        return f"takes {len(places)} arguments, not {n_positional}"
    needed = [p.name for p in places if p.default is kinds.empty and p.name not in keywords]
    if n_positional is not None and n_positional < len(needed):
        return f"needs {', '.join(needed)}"
    return None


def find(module, name):
    """The object of a dotted name; after "()" it goes on in the class that the call returns."""
    found, path = module, ""
    for part in name.split("."):
        word = part.removesuffix("()")
        found = getattr(found, word)
        path = f"{path}.{word}" if path else word
        if part.endswith("()"):
            if not inspect.isclass(found):
                returned = RETURNS.get(
                    path, None if path.startswith(("cuda", "_core")) else "ndarray"
                )
                if returned is None:
                    raise Unknown(path)
                found, path = find(module, returned), returned
            path += "()"
    return found


def problems(uses, modules):
    """What the modules lack of the uses: one line for each; names that can't be told apart."""
    found, unknown = [], set()
    for use in uses:
        for module in modules(use):
            where = f"{use.place}: {module.__name__}.{use.name}"
            try:
                target = find(module, use.name)
                if use.keywords is None or not callable(target):
                    continue
                says = takes(target, use.keywords, use.n_positional, use.name)
            except AttributeError:
                says = "no such name"
            except Unknown:
                unknown.add(use.name)
                continue
            if says:
                found.append(f"{where}: {says}")
    return found, unknown


# ---- The reading itself --------------------------------------------------------------------------


SOURCE = """
import cupy
class Backend:
    def __init__(self, cupy):
        self.stream = self.xp.cuda.Stream(non_blocking=True)
        core = self.xp._core
        self.pool = cupy.get_default_memory_pool()
    def work(self, x, xp, core):
        y = xp.zeros((2, 3), dtype=xp.float32)
        core.thing(1)
        z = self.backend.xp.add(x, y, out=y)
        self.stream.wait_event(z, key=1)
        self.pool.used_bytes()
        self.copies().record(2, 3)
        self.stream.wait_event()
        x.set(y, stream=1)
        return xp.sum(x, axis=0, initial=1), x.argmax(1, keepdims=True), xp.nothing, xp.cos(*x)
    def copies(self):
        return self.stream
"""


def test_reader_finds_names_keywords_and_what_stands_for_them():
    uses, methods = read(SOURCE)
    found = {(u.root, u.name, u.keywords, u.n_positional) for u in uses}
    assert ("xp", "zeros", ("dtype",), 1) in found
    assert ("xp", "float32", None, None) in found
    assert ("xp", "add", ("out",), 2) in found
    assert ("xp", "cuda.Stream", ("non_blocking",), 0) in found
    assert ("xp", "cuda.Stream().wait_event", ("key",), 1) in found
    assert ("cupy", "get_default_memory_pool().used_bytes", (), 0) in found
    assert ("xp", "cos", (), None) in found
    assert not any(u.name.endswith("core.thing") for u in uses)
    assert ("xp", "cuda.Stream().record", (), 2) in found
    assert methods == [("set", ("stream",), "file.py:16"), ("argmax", ("keepdims",), "file.py:17")]


def test_a_bad_name_and_a_bad_keyword_are_found():
    uses, _ = read(SOURCE)
    found, unknown = problems(uses, lambda use: [strict_cupy])
    assert [line.split(": ", 1)[1] for line in found] == [
        "strict_cupy.cuda.Stream().wait_event: no keyword key",
        "strict_cupy.cuda.Stream().record: takes 1 arguments, not 2",
        "strict_cupy.cuda.Stream().wait_event: needs event",
        "strict_cupy.sum: no keyword initial",
        "strict_cupy.nothing: no such name",
        "strict_cupy.cos: no such name",
    ]
    assert unknown == set()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("self, axis=None, out=None", ["axis", "out"]),
        ("x1, x2, /, out=None, *, casting='same_kind'", ["x1", "x2", "out", "casting"]),
        ("str code=None, *, tuple options=(), str backend='nvrtc'", ["code", "options", "backend"]),
        ("const shape_t& shape, Py_ssize_t axis1, **kw", ["shape", "axis1", "kw"]),
        ("", []),
    ],
)
def test_signatures_are_read_from_documentation(text, names):
    assert list(parsed(text).parameters) == names


def test_documented_signatures_keep_what_is_by_name_only():
    kinds = [p.kind.name for p in parsed("a, /, b=1, *, c=(1, 2), **d").parameters.values()]
    assert kinds == ["POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY", "VAR_KEYWORD"]


# ---- minicst against the stand-in and the real CuPy ----------------------------------------------


@pytest.fixture(scope="module")
def cupy():
    """The real module: it imports without a GPU."""
    return pytest.importorskip("cupy", reason="CuPy isn't installed")


@pytest.fixture(scope="module")
def cupyx(cupy):
    return pytest.importorskip("cupyx")


def test_the_scan_sees_the_gpu_code():
    uses = uses_of_minicst()
    assert {"RawModule", "dot", "empty", "cuda.Device().compute_capability"} <= {
        u.name for u in uses
    }
    assert any(u.root == "xp" and not GPU_ONLY.search(u.place.split(":")[0]) for u in uses)


def test_the_stand_in_has_every_name_that_minicst_uses():
    def modules(use):
        return [strict_cupy.cupyx if use.root == "cupyx" else strict_cupy]

    uses = [use for use in uses_of_minicst() if not use.name.startswith("scipy")]
    found, unknown = problems(uses, modules)
    assert (found, unknown) == ([], set())


def test_cupy_has_every_name_and_keyword_that_minicst_uses(cupy, cupyx):
    found, unknown = problems(
        uses_of_minicst(), lambda use: [cupyx if use.root == "cupyx" else cupy]
    )
    assert (found, unknown) == ([], set())


def test_numpy_has_every_name_that_code_for_both_uses():
    """Keywords only where NumPy tells them; every test on the CPU calls the rest."""

    def modules(use):
        file = use.place.split(":")[0]
        gpu = use.root != "xp" or GPU_ONLY.search(file)
        asked = MEASURES.search(file) and use.name.startswith(OF_THE_GPU)
        return [] if gpu or asked else [np]

    found, _ = problems(uses_of_minicst(), modules)
    assert found == []


def test_methods_called_in_device_code_are_methods_of_cupy_arrays(cupy):
    """In files that name xp, whatever is called like a method of numpy.ndarray."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        uses, methods = read(path.read_text(), path.relative_to(PACKAGE.parent).as_posix())
        for name, keywords, place in methods if uses else ():
            if not hasattr(cupy.ndarray, name):
                found.append(f"{place}: cupy.ndarray has no {name}")
            elif says := takes(getattr(cupy.ndarray, name), keywords):
                found.append(f"{place}: cupy.ndarray.{name}: {says}")
    assert found == []


# ---- The stand-in against the real CuPy ----------------------------------------------------------


def public(owner):
    return sorted(name for name in vars(owner) if not name.startswith("_"))


CLASSES = [
    "RawKernel",
    "RawModule",
    "cuda.Device",
    "cuda.Event",
    "cuda.MemoryPool",
    "cuda.PinnedMemoryPool",
    "cuda.Stream",
    "ndarray",
]
OPERATORS = [
    f"__{prefix}{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
    for prefix in ("", "r", "i")
]


def laxer(ours, real, path):
    """What our function takes and the real one doesn't."""
    try:
        mine, theirs = signature_of(ours), signature_of(real)
    except Unknown:
        return [f"{path}: signature unknown"]
    kinds = inspect.Parameter
    free = {kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD}
    by_place = {kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD}
    places = [p.name for p in theirs.parameters.values() if p.kind in by_place]
    names = {p.name for p in theirs.parameters.values()} | THROUGH_KWARGS.get(path, set())
    anything = {p.kind for p in theirs.parameters.values()} & free
    found = []
    mine = [p for p in mine.parameters.values() if p.kind not in free and p.name != "self"]
    for i, parameter in enumerate(mine):
        by_name = parameter.kind is not kinds.POSITIONAL_ONLY
        if by_name and parameter.name not in names and kinds.VAR_KEYWORD not in anything:
            found.append(f"{path}: cupy has no keyword {parameter.name}")
        counted = parameter.kind in by_place and kinds.VAR_POSITIONAL not in anything
        if counted and places[i : i + 1] != [parameter.name]:
            found.append(f"{path}: argument {i + 1} is {parameter.name} here only")
    return found


def test_laxer_finds_keywords_and_places_that_only_the_stand_in_has():
    def real(a, axis=None, *, dtype=None): ...

    def more(a, axis=None, *, dtype=None, where=None): ...

    def moved(a, out=None, axis=None): ...

    def by_place(a, axis=None, dtype=None): ...

    assert laxer(real, real, "f") == []
    assert laxer(more, real, "f") == ["f: cupy has no keyword where"]
    assert len(laxer(moved, real, "f")) == 3
    assert laxer(by_place, real, "f") == ["f: argument 3 is dtype here only"]


def functions_of_the_stand_in():
    """Dotted names of all public functions of the stand-in."""
    names = [n for n in strict_cupy.__all__ if n not in (*strict_cupy.OWN_NAMES, "cupyx")]
    names += [f"cuda.{name}" for name in strict_cupy.cuda.__all__]
    names += [f"cuda.runtime.{name}" for name in vars(strict_cupy.cuda.runtime)]
    names += [f"cuda.memory.{name}" for name in vars(strict_cupy.cuda.memory)]
    names += [f"_core.{name}" for name in ("set_compute_type", "get_compute_type")]
    return sorted(names)


@pytest.mark.parametrize("name", functions_of_the_stand_in())
def test_cupy_has_what_the_stand_in_has(cupy, name):
    ours, real = find(strict_cupy, name), find(cupy, name)
    refuses = getattr(ours, "__name__", "") == name and "refuse" in getattr(
        ours, "__qualname__", ""
    )
    if callable(ours) and not inspect.isclass(ours) and not refuses:
        assert laxer(ours, real, name) == []


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_no_attribute_that_cupys_have_not(cupy, name):
    ours, real = find(strict_cupy, name), find(cupy, name)
    if name != "cuda.PinnedMemoryPool":
        assert laxer(ours, real, name) == []
    for attribute in public(ours):
        assert hasattr(real, attribute), f"cupy.{name} has no {attribute}"
        method = getattr(ours, attribute)
        if inspect.isfunction(method):
            assert laxer(method, getattr(real, attribute), f"{name}.{attribute}") == []


def test_operators_are_cupys(cupy):
    ours = [name for name in OPERATORS if name in vars(strict_cupy.ndarray)]
    assert ours == OPERATORS
    assert all(hasattr(cupy.ndarray, name) for name in ours)


def test_pinned_memory_is_cupyxs(cupyx):
    for name in strict_cupy.cupyx.__all__:
        assert laxer(getattr(strict_cupy.cupyx, name), getattr(cupyx, name), name) == []


def test_numbers_and_types_are_cupys(cupy):
    for name in strict_cupy.NUMPY_NAMES:
        ours, real = getattr(strict_cupy, name), getattr(cupy, name)
        assert ours is real or ours == real or (ours != ours and real != real)
    real = cupy._core._routines_linalg
    for name, value in vars(strict_cupy._core._routines_linalg).items():
        assert getattr(real, name) == value
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError)


# ---- Arrays of the real CuPy on host memory: what needs no device is as in the stand-in ----------


HOST = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture
def pair(cupy):
    """The same array in both: one of the real CuPy's, though on host memory."""
    host = HOST.copy()
    memory = cupy.cuda.UnownedMemory(host.ctypes.data, host.nbytes, host, 0)
    real = cupy.ndarray(host.shape, host.dtype, cupy.cuda.MemoryPointer(memory, 0))
    return strict_cupy.asarray(host), real


VIEWS = {
    "row": lambda a, xp: a[1],
    "number": lambda a, xp: a[1, 2, 3],
    "slices": lambda a, xp: a[:, 1:, ::2],
    "backwards": lambda a, xp: a[::-1, :, ::-1],
    "ellipsis": lambda a, xp: a[..., 2],
    "new axis": lambda a, xp: a[:, None, 1],
    "none left": lambda a, xp: a[:, 3:],
    "T": lambda a, xp: a.T,
    "transposed": lambda a, xp: a.transpose(1, 2, 0),
    "swapped": lambda a, xp: a.swapaxes(0, 2),
    "moved": lambda a, xp: xp.moveaxis(a, 0, -1),
    "reshaped": lambda a, xp: a.reshape(6, -1),
    "reshaped by a tuple": lambda a, xp: a.reshape((4, 6)),
    "raveled": lambda a, xp: a.ravel(),
    "squeezed": lambda a, xp: a[:1].squeeze(),
    "expanded": lambda a, xp: xp.expand_dims(a, 1),
    "flipped": lambda a, xp: xp.flip(a, 1),
    "split": lambda a, xp: xp.split(a, 2, axis=2)[1],
    "broadcast": lambda a, xp: xp.broadcast_to(a, (5, 2, 3, 4)),
    "bytes": lambda a, xp: a.view(xp.uint8),
    "wider": lambda a, xp: a.view(xp.float64),
    "in C order": lambda a, xp: xp.ascontiguousarray(a),
    "same type and order": lambda a, xp: a.astype(xp.float32, order="C", copy=False),
    "same type in Fortran order": lambda a, xp: a.T.astype(xp.float32, order="F", copy=False),
    "same type": lambda a, xp: a.astype(xp.float32, copy=False),
}
REFUSALS = {
    "conversion": lambda a, xp: np.asarray(a),
    "product with the host": lambda a, xp: a[0] @ HOST[0].T,
    "dot with the host": lambda a, xp: xp.dot(a[0], HOST[0].T),
    "host to all": lambda a, xp: a.__setitem__(Ellipsis, HOST),
    "list to a row": lambda a, xp: a.__setitem__((0, 0), [1.0, 2.0, 3.0, 4.0]),
    "fill": lambda a, xp: a.fill(HOST),
    "copyto": lambda a, xp: xp.copyto(a, HOST),
    "set another type": lambda a, xp: a.set(HOST.astype(np.float64)),
    "set another shape": lambda a, xp: a.set(HOST[0]),
    "set a list": lambda a, xp: a.set([1.0]),
    "set into columns": lambda a, xp: a[:, :, ::2].set(HOST[:, :, ::2]),
    "row out of range": lambda a, xp: a[2],
    "too many indices": lambda a, xp: a[0, 0, 0, 0],
    "iterate over a number": lambda a, xp: iter(a[0, 0, 0]),
    "len of a number": lambda a, xp: len(a[0, 0, 0]),
    "hash": lambda a, xp: hash(a),
    "truth of many": lambda a, xp: bool(a),
    "item of many": lambda a, xp: a.item(),
    "an index of a list": lambda a, xp: [1, 2][a[0, 0, 0]],
    "a keyword of NumPy's": lambda a, xp: xp.add(a, 1, where=True),
    "sum(initial=)": lambda a, xp: xp.sum(a, initial=0.0),
    "sum of a list": lambda a, xp: xp.stack([HOST, HOST]),
    "bad reshape": lambda a, xp: a.reshape(5, 5),
    "columns as bytes": lambda a, xp: a.T.view(xp.uint8),
    "options in a list": lambda a, xp: xp.RawModule(code="", options=["-DREAL=float"]),
    "options by place": lambda a, xp: xp.RawModule("", ("-DREAL=float",)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_lie_in_memory_as_cupys_do(cupy, pair, name):
    ours, real = (VIEWS[name](a, xp) for a, xp in zip(pair, (strict_cupy, cupy), strict=True))
    assert ours.shape == real.shape
    assert ours.dtype == real.dtype
    assert (ours.ndim, ours.size, ours.nbytes) == (real.ndim, real.size, real.nbytes)
    assert (ours is pair[0]) == (real is pair[1])
    assert (ours.base is pair[0]) == (real.base is pair[1])
    for flag in ("c_contiguous", "f_contiguous", "fnc", "forc"):
        assert getattr(ours.flags, flag) == getattr(real.flags, flag)
    if ours.size:
        assert ours.strides == real.strides
        assert ours.data.ptr - pair[0].data.ptr == real.data.ptr - pair[1].data.ptr


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_cupys(cupy, pair, name):
    errors = []
    for a, xp in zip(pair, (strict_cupy, cupy), strict=True):
        with pytest.raises((TypeError, ValueError, IndexError, RuntimeError)) as error:
            REFUSALS[name](a, xp)
        errors.append(error.value)
    ours, real = errors
    assert "cudaError" not in str(real)  # it is refused before it reaches a device
    assert type(ours) is type(real)


def test_the_pool_rounds_as_cupys(cupy):
    for n_bytes in (1, 511, 512, 513, 4000):
        pool = strict_cupy.cuda.MemoryPool()
        pool._take(n_bytes)
        assert pool.used_bytes() == cupy.cuda.memory._round_size(n_bytes)

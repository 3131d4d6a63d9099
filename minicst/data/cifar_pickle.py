"""Reader of CIFAR's python batches: pickles, of which nothing but arrays and lists is built.

A pickle is a program for a small machine that may call any function that it can name. This reader
gives it five names with stand-ins behind them, and refuses all others before anything is called.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class _Refused(Exception):
    """The pickle asks for something that no batch of CIFAR needs."""


class _Admitted:
    """A function that a pickle may call, but not change: BUILD sets attributes of what it names."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _Refused("it tries to change a function")


class _Bytes:
    """Stands for a dtype: unsigned bytes, whatever its state says."""

    def __setstate__(self, state: object) -> None:
        """Take byte order and alignment, which bytes don't have."""


class _Array:
    """Stands for an array: NumPy builds the real one from checked parts, not from the pickle's."""

    values: npt.NDArray[np.uint8]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(dtype, _Bytes) or not isinstance(raw, bytes):
            raise _Refused("it asks for an array of another type than uint8")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"an array has shape {shape}")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _dtype(code: object, *flags: object) -> _Bytes:
    if code not in ("u1", "|u1", "uint8"):
        raise _Refused(f"it asks for an array of {code!r}, where only uint8 is read")
    return _Bytes()


def _encode(text: object, encoding: object) -> bytes:
    # By this name Python 3 writes bytes into an old pickle.
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"it asks for the encoding {encoding!r}, where only latin1 is read")
    return text.encode("latin1")


def _no_array(*arguments: object) -> object:
    raise _Refused("it makes an array in another way than NumPy writes one")


_RECONSTRUCT = _Admitted(lambda *arguments: _Array())
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): _Admitted(_no_array),  # only ever an argument
    ("numpy", "dtype"): _Admitted(_dtype),
    ("_codecs", "encode"): _Admitted(_encode),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Refused(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: object) -> Any:
        raise _Refused("it asks for a persistent object")


def _load(name: str, path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            # latin1 keeps the bytes of a pickle of Python 2 as they are, and makes its keys text.
            content = _Unpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise ValueError(
            f"{name}: {path} isn't a batch of CIFAR: {error}; nothing of it was run, fetch the "
            "archive from its publisher"
        ) from None
    # A damaged program can fail in any way that its instructions can.
    except Exception as error:
        raise ValueError(
            f"{name}: {path} is damaged or cut short ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); unpack the archive again"
        ) from error
    if not isinstance(content, dict):
        raise _wrong(name, path, f"it holds a {type(content).__name__}, not a dictionary")
    # A pickle that was written again may have keys of bytes.
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value
        for key, value in content.items()
    }


def _wrong(name: str, path: Path, why: str) -> ValueError:
    return ValueError(f"{name}: {path} isn't a batch of CIFAR: {why}; unpack the archive again")


def read_batch(
    name: str, path: Path, label_key: str, pixels: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Read one python batch.

    Args:
        name: Data set, for messages.
        path: The file, a pickled dictionary.
        label_key: Key of the list of labels.
        pixels: Values of one image.

    Returns:
        The values, uint8 (n, pixels), and the labels, int64 (n,), whose range isn't checked.

    Raises:
        ValueError: The pickle names anything but array constructors (nothing of it is run then),
            is damaged, or doesn't hold values and labels of these shapes.
    """
    content = _load(name, path)
    stored, labels = content.get("data"), content.get(label_key)
    data = getattr(stored, "values", None) if isinstance(stored, _Array) else None
    if data is None or data.ndim != 2:
        raise _wrong(name, path, "its 'data' isn't a uint8 array (n, values)")
    if data.shape[1] != pixels or len(data) == 0:
        raise _wrong(name, path, f"its 'data' has shape {data.shape}, not (n, {pixels})")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise _wrong(name, path, f"its {label_key!r} isn't a list of whole numbers")
    if len(labels) != len(data):
        raise _wrong(name, path, f"it has {len(data)} images but {len(labels)} labels")
    if any(not 0 <= label < 1 << 16 for label in labels):
        raise _wrong(name, path, f"its {label_key!r} holds a number that is no label")
    return data, np.array(labels, np.int64)


def read_names(name: str, path: Path, key: str, classes: int) -> tuple[str, ...]:
    """Return the class names in a python version's file of names.

    Raises:
        ValueError: As `read_batch`, or there aren't `classes` names.
    """
    names = _load(name, path).get(key)
    if not isinstance(names, list) or not all(isinstance(entry, str | bytes) for entry in names):
        raise _wrong(name, path, f"its {key!r} isn't a list of names")
    if len(names) != classes:
        raise _wrong(name, path, f"it has {len(names)} class names where {classes} are needed")
    return tuple(
        entry.decode("latin1") if isinstance(entry, bytes) else str(entry) for entry in names
    )

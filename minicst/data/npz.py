"""A data set of one's own in one .npz file."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Half = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

KEYS = ("x_train", "y_train", "x_test", "y_test")
_NAMES = "class_names"
# A bare .npy array has no context manager, hence TypeError and AttributeError.
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def open_npz(path: Path) -> tuple[tuple[Half, Half], tuple[str, ...], str]:
    """Read a data set from a .npz file.

    Keys: `x_train`, `x_test`: uint8 (n, h, w) or (n, h, w, c), 0..255; `y_train`, `y_test`: any
    whole-number dtype (n,), from 0; optionally `class_names`: text (classes,), else a class is
    named by its number. Other keys are left alone. Nothing is unpickled.

    Returns:
        `((train_images, train_labels), (test_images, test_labels))`, uint8 (n, h, w, c) and int64
        (n,); the class names; and one line that says what was read.

    Raises:
        ValueError: The file is missing, damaged, holds an object array or doesn't hold these
            keys, shapes and dtypes; names the first one that is wrong.
    """
    if not path.is_file():
        raise ValueError(f"npz: there is no file {path}; give --data-dir FILE.npz")
    try:
        # Opened here, because NumPy leaves a damaged archive that it opened itself open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: _array(path, file, key) for key in KEYS}
            names = _array(path, file, _NAMES) if _NAMES in file.files else None
    except _Wrong as error:
        raise ValueError(str(error)) from error.__cause__
    except UNREADABLE as error:
        raise ValueError(
            f"npz: {path} can't be read as .npz ({' '.join(str(error).split()) or 'empty'}); "
            "write it with numpy.savez, without object arrays"
        ) from error
    train = _half(path, arrays, "x_train", "y_train")
    test = _half(path, arrays, "x_test", "y_test")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"npz: {path}: x_train has images of shape {train[0].shape[1:]}, x_test of "
            f"{test[0].shape[1:]}; both must be the same"
        )
    highest = int(max(train[1].max(), test[1].max()))
    if names is None:
        class_names = tuple(str(label) for label in range(highest + 1))
    else:
        if names.dtype.kind != "U" or names.ndim != 1 or len(names) <= highest:
            raise ValueError(
                f"npz: {path}: class_names is {names.dtype} {names.shape}; it must be text with "
                f"one name for each label 0 to {highest}"
            )
        class_names = tuple(str(name) for name in names)
    return (train, test), class_names, f"a data set of one's own, read from {path}"


class _Wrong(Exception):
    pass


def _array(path: Path, file: "np.lib.npyio.NpzFile", key: str) -> npt.NDArray[Any]:
    if key not in file.files:
        there = ", ".join(file.files) or "nothing"
        raise _Wrong(f"npz: {path} has no {key}; it holds {there}, and needs {', '.join(KEYS)}")
    try:
        return file[key]
    except UNREADABLE as error:
        raise _Wrong(
            f"npz: {path}: {key} can't be read ({' '.join(str(error).split())}); write the file "
            "with numpy.savez, without object arrays"
        ) from error


def _half(path: Path, arrays: dict[str, npt.NDArray[Any]], x_key: str, y_key: str) -> Half:
    images, labels = arrays[x_key], arrays[y_key]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise ValueError(
            f"npz: {path}: {x_key} is {images.dtype} {images.shape}; it must be uint8 (n, h, w) "
            "or (n, h, w, c), 0..255, and not empty"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"npz: {path}: {y_key} is {labels.dtype} {labels.shape}; it must be whole numbers "
            f"({len(images)},), one for each image of {x_key}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > _HIGHEST:
        raise ValueError(
            f"npz: {path}: {y_key} holds {low if low < 0 else high}; labels are 0, 1, ... in a "
            f"row, {_HIGHEST} at most"
        )
    return images if images.ndim == 4 else images[..., None], labels.astype(np.int64)


# A number far above is a mistake, such as an id, and would ask for as many classifier rows.
_HIGHEST = 99_999

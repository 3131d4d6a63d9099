"""Reader of CIFAR-10's binary version: six files of fixed records, mapped into memory."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

FOLDER_NAME = "cifar-10-batches-bin"

_SIDE, _CHANNELS, _CLASSES = 32, 3, 10
_RECORD_BYTES = 1 + _CHANNELS * _SIDE * _SIDE  # the label, then the pixels
_TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST_FILE = "test_batch.bin"
_NAMES_FILE = "batches.meta.txt"

Half = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def find_folder(data_dir: Path) -> Path:
    """Return the folder with the files: `data_dir` itself, or cifar-10-batches-bin in it.

    Raises:
        ValueError: Neither is a folder that holds all of the files; names the first missing one.
    """
    inner = data_dir / FOLDER_NAME
    folder = inner if inner.is_dir() else data_dir
    if not folder.is_dir():
        raise ValueError(f"cifar10: there is no folder {folder}; give the one with {FOLDER_NAME}")
    for file_name in (*_TRAIN_FILES, _TEST_FILE, _NAMES_FILE):
        if not (folder / file_name).is_file():
            raise ValueError(
                f"cifar10: {folder} has no file {file_name}; give the unpacked folder of the "
                "binary version (cifar-10-binary.tar.gz); the Python and Matlab ones aren't read"
            )
    return folder


def read_cifar10(folder: Path, limit: int | None = None) -> tuple[Half, Half]:
    """Read the binary version.

    A file is a row of records of 3073 bytes: one label, 1024 red, 1024 green and 1024 blue values,
    each plane 32x32, row by row. The published files have 10,000 records each; any whole number
    from 1 on is read. The files are mapped, not loaded: only the records asked for are touched,
    and copied once, into channels-last order.

    Args:
        folder: Where the six .bin files lie, see `find_folder`.
        limit: Read only the first `limit` training images, in the order of the files, at least 1;
            all if there are fewer. The test half is always read whole.

    Returns:
        `((train_images, train_labels), (test_images, test_labels))`: uint8 (n, 32, 32, 3) and
        int64 (n,), 0..9.

    Raises:
        ValueError: A file isn't a whole number of records or holds a label above 9; names it.
    """
    train = _read_half([folder / file_name for file_name in _TRAIN_FILES], limit)
    return train, _read_half([folder / _TEST_FILE], None)


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Return the names in batches.meta.txt, one a line, in the order of the labels.

    Raises:
        ValueError: There aren't ten.
    """
    text = (folder / _NAMES_FILE).read_text(encoding="utf-8", errors="replace")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != _CLASSES:
        raise ValueError(
            f"cifar10: {folder / _NAMES_FILE} has {len(names)} class names where {_CLASSES} are "
            "needed, one a line; unpack the archive again"
        )
    return names


def _map_records(path: Path) -> npt.NDArray[np.uint8]:
    """Map a file as (records, 3073), without reading it."""
    size = path.stat().st_size
    if size == 0 or size % _RECORD_BYTES:
        raise ValueError(
            f"cifar10: {path} has {size} bytes, not a whole number of records of {_RECORD_BYTES} "
            "(published: 30730000 bytes); it is cut short or another file, unpack the archive again"
        )
    return np.memmap(path, np.uint8, mode="r").reshape(-1, _RECORD_BYTES)


def _read_half(paths: list[Path], limit: int | None) -> Half:
    """Copy the first `limit` records of the files to images and labels."""
    files = [_map_records(path) for path in paths]
    count = sum(len(records) for records in files)
    count = count if limit is None else min(limit, count)
    images = np.empty((count, _SIDE, _SIDE, _CHANNELS), np.uint8)
    labels = np.empty(count, np.int64)
    start = 0
    for path, mapped in zip(paths, files, strict=True):
        records = mapped[: count - start]
        bad = np.flatnonzero(records[:, 0] >= _CLASSES)
        if bad.size:
            raise ValueError(
                f"cifar10: {path} has label {records[bad[0], 0]} in record {bad[0]} (from 0); "
                f"labels are 0 to {_CLASSES - 1}: the file is damaged, unpack the archive again"
            )
        stop = start + len(records)
        labels[start:stop] = records[:, 0]
        planes = records[:, 1:].reshape(-1, _CHANNELS, _SIDE, _SIDE)
        images[start:stop] = planes.transpose(0, 2, 3, 1)  # (n, 32, 32, 3)
        start = stop
    return images, labels

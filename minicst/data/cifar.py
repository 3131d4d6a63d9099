"""CIFAR-10 and CIFAR-100: find, check, unpack or download their files, and read them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicst.data.archive import unpack
from minicst.data.cifar_layout import CHANNELS, LAYOUTS, PIXELS, SIDE, Layout, Version
from minicst.data.cifar_pickle import read_batch, read_names
from minicst.data.download import Show, cache_folder, check_sum, fetch

Half = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

_SITES = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_TEXT_LIMIT = 1 << 16  # bytes of a file of names


def open_cifar(
    name: str,
    data_dir: Path | None,
    limit: int | None = None,
    *,
    verify: bool = True,
    progress: Show = None,
) -> tuple[tuple[Half, Half], tuple[str, ...], str]:
    """Find and read CIFAR-10 or CIFAR-100; the binary version where both are there.

    A binary file is a row of records: the label (CIFAR-100: coarse label, fine label, of which
    the fine one is read), 1024 red, 1024 green and 1024 blue values, each plane 32x32, row by
    row. It is mapped, not loaded: only the records asked for are copied, once, into channels-last
    order. The python files are pickles; they are read by `read_batch`, which runs nothing.

    Args:
        name: A key of `LAYOUTS`.
        data_dir: An unpacked folder of either version, the folder that holds one, one of the
            official archives or the folder that holds it. An archive is unpacked next to itself,
            once. None: the cache folder, into which the binary archive is downloaded if needed.
        limit: Read only the first `limit` training images, in the order of the files, at least 1;
            all if there are fewer. The test half is always read whole.
        verify: Compare archives and python files with their checksums, and the sizes of the
            binary files with the published ones. Without it, any whole number of images is read.
        progress: See `minicst.data.download.fetch`.

    Returns:
        `((train_images, train_labels), (test_images, test_labels))`, uint8 (n, 32, 32, 3) and
        int64 (n,); the class names; and one line that says what was read and whether its bytes
        are the published ones.

    Raises:
        ValueError: Nothing was found, or a file is missing, damaged, hostile or not the published
            one.
    """
    layout = LAYOUTS[name]
    folder, version = _locate(name, layout, data_dir, verify, progress)
    kind = "binary" if version is layout.binary else "python"
    for file_name in version.files:
        if not (folder / file_name).is_file():
            raise ValueError(
                f"{name}: {folder} has no file {file_name}; give the unpacked folder of the "
                f"{kind} version ({version.archive}), or unpack it again"
            )
    if kind == "binary":
        counts = _map_all(name, layout, folder, verify)
        checked = _compare_binary(version, folder) if verify else _UNVERIFIED
        train = _read_binary(name, layout, [counts[f] for f in version.train], limit)
        test = _read_binary(name, layout, [counts[f] for f in version.test], None)
        names = _read_text_names(name, layout, folder / version.names)
    else:
        checked = _compare_python(name, version, folder) if verify else _UNVERIFIED
        train = _read_python(name, layout, [folder / f for f in version.train], limit)
        test = _read_python(name, layout, [folder / f for f in version.test], None)
        names = read_names(name, folder / version.names, layout.names_key, layout.classes)
    source = f"{layout.title} (Krizhevsky 2009), {kind} version, read from {folder}; {checked}"
    return (train, test), names, source


_UNVERIFIED = "not compared with the published checksums"


# Finding


def _locate(
    name: str, layout: Layout, data_dir: Path | None, verify: bool, progress: Show
) -> tuple[Path, Version]:
    """Return the folder of unpacked files and their version."""
    versions = (layout.binary, layout.python)
    if data_dir is None:
        folder = cache_folder()
        found = _look_into(name, folder, versions, verify=True)
        return found or _download(name, layout.binary, folder, progress)
    if data_dir.is_file():
        for version in versions:
            if data_dir.name == version.archive:
                return _unpack(name, data_dir, version, verify), version
        raise ValueError(
            f"{name}: {data_dir} is none of the archives "
            f"{' and '.join(version.archive for version in versions)}; give one or its folder"
        )
    if not data_dir.is_dir():
        raise ValueError(
            f"{name}: there is no folder {data_dir}; give the one with {layout.binary.folder}, "
            f"or leave out --data-dir to download"
        )
    found = _look_into(name, data_dir, versions, verify)
    if found is None:
        raise ValueError(
            f"{name}: {data_dir} holds neither {layout.binary.folder} nor {layout.python.folder} "
            f"nor {layout.binary.archive} nor {layout.python.archive}; give the folder with one "
            "of them, or leave out --data-dir to download"
        )
    return found


def _look_into(
    name: str, folder: Path, versions: tuple[Version, Version], verify: bool
) -> tuple[Path, Version] | None:
    for version in versions:
        inner = folder / version.folder
        if inner.is_dir():
            return inner, version
        # The unpacked folder itself, by whatever name; a missing file is named later.
        if any((folder / file_name).is_file() for file_name in version.files):
            return folder, version
        if (folder / version.archive).is_file():
            return _unpack(name, folder / version.archive, version, verify), version
    return None


def _unpack(name: str, archive: Path, version: Version, verify: bool) -> Path:
    """Check an archive and unpack it next to itself, where that isn't done already."""
    if verify and not check_sum(archive, version.checksum):
        raise ValueError(
            f"{name}: {archive} isn't the published archive ({version.checksum}): it is damaged "
            "or a copy; fetch it again, or pass --no-verify to use it as it is"
        )
    folder = archive.parent / version.folder
    if folder.is_dir():
        return folder
    limits = {version.names: _TEXT_LIMIT}
    for file_name, count in {**version.train, **version.test}.items():
        # Of a python file half a percent of its bytes are names and labels, in CIFAR-100 1 %.
        limits[file_name] = count * (PIXELS + 256)
    return unpack(name, archive, limits, version.folder, beside=archive.parent)


def _download(name: str, version: Version, folder: Path, progress: Show) -> tuple[Path, Version]:
    urls = tuple(site + version.archive for site in _SITES)
    archive = fetch(name, urls, version.checksum, folder, progress)
    unpacked = _unpack(name, archive, version, verify=False)  # fetch has compared it
    archive.unlink(missing_ok=True)  # 170 MB that nothing reads again
    return unpacked, version


# Checking


def _compare_binary(version: Version, folder: Path) -> str:
    """Say whether the bytes are the published ones.

    A difference is said and not refused: the publisher gives no sums of these files, and a copy
    of the right size, such as one that went through JPEG, is a data set of its own.
    """
    different = [f for f, checksum in version.sums.items() if not check_sum(folder / f, checksum)]
    if different:
        return f"not the published bytes: the checksums of {', '.join(different)} differ"
    return "checksums are those of the published data"


def _compare_python(name: str, version: Version, folder: Path) -> str:
    for file_name, checksum in version.sums.items():
        if not check_sum(folder / file_name, checksum):
            raise ValueError(
                f"{name}: {folder / file_name} isn't the published file ({checksum}): it is "
                "damaged or a copy; unpack the archive again, or pass --no-verify to use it"
            )
    return "checksums are those of the published data"


# Binary version


@dataclass(frozen=True)
class _Mapped:
    path: Path
    records: npt.NDArray[np.uint8]  # (n, record_bytes)


def _map_all(name: str, layout: Layout, folder: Path, verify: bool) -> dict[str, _Mapped]:
    """Map all files without reading them; their sizes are checked."""
    mapped = {}
    record = layout.record_bytes
    for file_name, published in {**layout.binary.train, **layout.binary.test}.items():
        path = folder / file_name
        size = path.stat().st_size
        if size == 0 or size % record:
            raise ValueError(
                f"{name}: {path} has {size} bytes, not a whole number of records of {record} "
                f"(published: {published * record} bytes); it is cut short or another file, "
                "unpack the archive again"
            )
        if verify and size != published * record:
            raise ValueError(
                f"{name}: {path} has {size} bytes where the published file has "
                f"{published * record}; unpack the archive again, or pass --no-verify to read "
                "another number of images"
            )
        records = np.memmap(path, np.uint8, mode="r").reshape(-1, record)
        mapped[file_name] = _Mapped(path, records)
    return mapped


def _read_binary(name: str, layout: Layout, files: list[_Mapped], limit: int | None) -> Half:
    """Copy the first `limit` records of the files to images and labels."""
    count = sum(len(file.records) for file in files)
    count = count if limit is None else min(limit, count)
    images = np.empty((count, SIDE, SIDE, CHANNELS), np.uint8)
    labels = np.empty(count, np.int64)
    start = 0
    for file in files:
        records = file.records[: count - start]
        stop = start + len(records)
        labels[start:stop] = records[:, layout.label_bytes - 1]
        _check_labels(name, layout, file.path, labels[start:stop])
        images[start:stop] = _to_channels_last(records[:, layout.label_bytes :])
        start = stop
    return images, labels


def _read_text_names(name: str, layout: Layout, path: Path) -> tuple[str, ...]:
    with path.open("rb") as file:
        text = file.read(_TEXT_LIMIT).decode(errors="replace")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != layout.classes:
        raise ValueError(
            f"{name}: {path} has {len(names)} class names where {layout.classes} are needed, "
            "one a line; unpack the archive again"
        )
    return names


# Python version


def _read_python(name: str, layout: Layout, paths: list[Path], limit: int | None) -> Half:
    """Read batches until there are `limit` images."""
    image_parts, label_parts, count = [], [], 0
    for path in paths:
        if limit is not None and count >= limit:
            break
        rows, labels = read_batch(name, path, layout.label_key, PIXELS)
        if limit is not None:
            rows, labels = rows[: limit - count], labels[: limit - count]
        _check_labels(name, layout, path, labels)
        image_parts.append(np.ascontiguousarray(_to_channels_last(rows)))
        label_parts.append(labels)
        count += len(labels)
    return np.concatenate(image_parts), np.concatenate(label_parts)


def _to_channels_last(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    planes = rows.reshape(-1, CHANNELS, SIDE, SIDE)
    return planes.transpose(0, 2, 3, 1)  # (n, 32, 32, 3)


def _check_labels(name: str, layout: Layout, path: Path, labels: npt.NDArray[np.int64]) -> None:
    bad = np.flatnonzero((labels < 0) | (labels >= layout.classes))
    if bad.size:
        raise ValueError(
            f"{name}: {path} has label {labels[bad[0]]} in record {bad[0]} (from 0); "
            f"labels are 0 to {layout.classes - 1}: the file is damaged, unpack the archive again"
        )

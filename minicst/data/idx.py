"""MNIST and Fashion-MNIST: find or download their IDX files, plain or .gz, and read them."""

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from minicst.data.download import Show, cache_folder, fetch

Half = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

SIDE, CLASSES = 28, 10
_COUNTS = {"train": 60_000, "t10k": 10_000}
FILES = tuple(f"{half}-{kind}-ubyte" for half in _COUNTS for kind in ("images-idx3", "labels-idx1"))


@dataclass(frozen=True)
class Collection:
    """What there is to know about one of the two data sets.

    Attributes:
        title: Its name and origin, for `Dataset.source`.
        class_names: Name of each class.
        sites: Where its .gz files can be had, each ending in a slash.
        packed: Checksums of the published .gz files, in the order of `FILES`.
        unpacked: sha256 of the files without compression, in the same order: others compress
            the same bytes in another way.
        shared: System-wide folder of the files, where a package has put them.
        inner: Folder below `data_dir` that another library's loader uses.
    """

    title: str
    class_names: tuple[str, ...]
    sites: tuple[str, ...]
    packed: tuple[str, ...]
    unpacked: tuple[str, ...]
    shared: Path | None
    inner: str


COLLECTIONS = {
    "mnist": Collection(
        title="MNIST (LeCun, Cortes and Burges 1998)",
        class_names=tuple(str(digit) for digit in range(10)),
        sites=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
        # torchvision's list; the sha256 stand alike in several loaders that check them.
        packed=(
            "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "md5:9fb629c4189551a2d022fa330f9573f3",
            "md5:ec29112dd5afa0611ce80d1b7f02629c",
        ),
        unpacked=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        shared=None,
        inner="MNIST/raw",
    ),
    "fashion-mnist": Collection(
        title="Fashion-MNIST, (c) 2017 Zalando SE, MIT license",
        class_names=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        sites=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        # torchvision's list; the sha256 were taken from Debian's package of the data set.
        packed=(
            "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "md5:25c81989df183df01b3e8a0aad5dffbe",
            "md5:bef4ecab320f06d8554ea6380940ec79",
            "md5:bb300cfdad3c16e7a12a480ee83cd310",
        ),
        unpacked=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        shared=Path("/usr/share/datasets/fashion-mnist"),  # Debian's dataset-fashion-mnist
        inner="FashionMNIST/raw",
    ),
}


def open_idx(
    name: str, data_dir: Path | None, *, verify: bool = True, progress: Show = None
) -> tuple[tuple[Half, Half], tuple[str, ...], str]:
    """Find and read MNIST or Fashion-MNIST, all 70,000 images.

    Args:
        name: A key of `COLLECTIONS`.
        data_dir: Folder of the four files, by their published names, each plain or with .gz; or
            the folder above MNIST/raw or FashionMNIST/raw. None: the cache folder, the system's
            shared one where installed, else a download into the cache folder.
        verify: Compare the files' sha256, without compression, with the published ones. Without
            it, up to the published number of images is read.
        progress: See `minicst.data.download.fetch`.

    Returns:
        `((train_images, train_labels), (test_images, test_labels))`, uint8 (n, 28, 28, 1) and
        int64 (n,), 0..9; the class names; and one line that says what was read.

    Raises:
        ValueError: Nothing was found, or a file is missing, damaged or not the published one.
    """
    collection = COLLECTIONS[name]
    folder = _locate(name, collection, data_dir, progress)
    arrays = []
    for file_name, digest in zip(FILES, collection.unpacked, strict=True):
        array, found = _read(name, folder, file_name)
        if verify and found != digest:
            raise ValueError(
                f"{name}: {folder / file_name} isn't the published file (sha256 {digest} without "
                "compression): it is damaged or a copy; fetch it again, or pass --no-verify"
            )
        arrays.append(array)
    halves = []
    for half, images, labels in (("train", arrays[0], arrays[1]), ("t10k", arrays[2], arrays[3])):
        if len(images) != len(labels):
            raise ValueError(
                f"{name}: {folder} has {len(images)} {half} images but {len(labels)} labels; "
                "they belong to different data sets, fetch the files again"
            )
        halves.append((images[..., None], labels.astype(np.int64)))
    checked = "checksums are those of the published data"
    if not verify:
        checked = "not compared with the published checksums"
    source = f"{collection.title}, read from {folder}; {checked}"
    return (halves[0], halves[1]), collection.class_names, source


def _locate(name: str, collection: Collection, data_dir: Path | None, progress: Show) -> Path:
    if data_dir is not None:
        for folder in (data_dir, data_dir / collection.inner):
            if any(_path(folder, file_name).is_file() for file_name in FILES):
                return folder
        raise ValueError(
            f"{name}: {data_dir} holds none of {', '.join(FILES)}, plain or with .gz, nor does "
            f"{collection.inner} in it; give their folder, or leave out --data-dir to download"
        )
    cache = cache_folder() / name
    for place in (cache, collection.shared):
        if place and all(_path(place, file_name).is_file() for file_name in FILES):
            return place
    for file_name, checksum in zip(FILES, collection.packed, strict=True):
        urls = tuple(f"{site}{file_name}.gz" for site in collection.sites)
        fetch(name, urls, checksum, cache, progress)
    return cache


def _path(folder: Path, file_name: str) -> Path:
    """Return the path of a file, plain where it is there, else with .gz."""
    plain = folder / file_name
    return plain if plain.is_file() else folder / f"{file_name}.gz"


def _read(name: str, folder: Path, file_name: str) -> tuple[npt.NDArray[np.uint8], str]:
    """Return an IDX file's array and the sha256 of its bytes without compression."""
    path = _path(folder, file_name)
    if not path.is_file():
        raise ValueError(
            f"{name}: {folder} has no file {file_name}, plain or with .gz; all four are needed: "
            f"{', '.join(FILES)}"
        )
    most = _COUNTS[file_name.split("-")[0]]
    shape = (SIDE, SIDE) if "images" in file_name else ()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            array, digest = read_idx(cast(BinaryIO, stream), most, shape)
    except (EOFError, OSError, zlib.error, ValueError) as error:
        raise ValueError(f"{name}: {path}: {error}; fetch the file again") from error
    if not shape and array.max() >= CLASSES:
        at = int(np.argmax(array >= CLASSES))
        raise ValueError(
            f"{name}: {path} has label {array[at]} in place {at} (from 0); labels are 0 to "
            f"{CLASSES - 1}: fetch the file again"
        )
    return array, digest


def read_idx(
    stream: BinaryIO, most: int, shape: tuple[int, ...] = ()
) -> tuple[npt.NDArray[np.uint8], str]:
    """Read an IDX stream of unsigned bytes.

    The format: two zero bytes, the type (8 is unsigned byte), the number of dimensions, each
    dimension as a big-endian uint32, then the values, last dimension fastest. No more is read than
    the largest array that is admitted and one byte, however much a compressed stream holds.

    Args:
        stream: Binary stream at its beginning.
        most: Largest first dimension.
        shape: The other dimensions.

    Returns:
        The values, uint8 (n, *shape), writable; and the sha256 of the stream in hex digits.

    Raises:
        ValueError: The stream is of another type or shape, is cut short or goes on.
    """
    dims = 1 + len(shape)
    header = stream.read(4 + 4 * dims)
    magic = bytes((0, 0, 8, dims))
    if header[:4] != magic:
        raise ValueError(f"it begins with {header[:4].hex(' ')}, not {magic.hex(' ')}: no such IDX")
    if len(header) < 4 + 4 * dims:
        raise ValueError("it ends within its header")
    count, *rest = (int(size) for size in np.frombuffer(header, ">u4", offset=4))
    if tuple(rest) != shape:
        raise ValueError(f"its items have shape {tuple(rest)}, not {shape}")
    if not 1 <= count <= most:
        raise ValueError(f"its header says {count} items; 1 to {most} are expected")
    size = count * math.prod(shape)
    values = bytearray(stream.read(size))
    if len(values) < size:
        raise ValueError(f"it ends after {len(values)} of {size} values: it is cut short")
    if stream.read(1):
        raise ValueError(f"it goes on after the {size} values that its header says")
    digest = hashlib.sha256(header)
    digest.update(values)
    array = np.frombuffer(values, np.uint8).reshape(count, *shape)
    return array, digest.hexdigest()

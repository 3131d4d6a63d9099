"""Data sets by name: three that come with the package, and CIFAR-10 from its own files."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicst.data.cifar10 import FOLDER_NAME, Half, find_folder, read_cifar10, read_class_names
from minicst.data.dataset import Dataset
from minicst.data.shapes import CLASS_NAMES as SHAPE_NAMES
from minicst.data.shapes import make_shapes

DATASETS = ("fashion", "digits", "shapes32", "cifar10")

_FOLDER = Path(__file__).parent
_COUNTED_AT_ONCE = 2000  # images
_KEYS = ("x_train", "y_train", "x_test", "y_test")
_FASHION_NAMES = (
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
)


def load_dataset(
    name: str,
    pad_to: int | None = None,
    data_dir: str | Path | None = None,
    limit: int | None = None,
) -> Dataset:
    """Load a data set. No download, no network.

    Inside the package:

    - `"fashion"`: a subset of Fashion-MNIST, 28x28x1, 2000 train and 500 test, balanced.
    - `"digits"`: handwritten digits, 8x8x1, 1437 train and 360 test, stratified, values 0..16.
    - `"shapes32"`: synthetic colored shapes and patterns, 32x32x3, 2000 train and 500 test,
      balanced, computed on first use (about half a second) and kept.

    From `data_dir`:

    - `"cifar10"`: photographs, 32x32x3, 50000 train and 10000 test, balanced; the binary version.

    Args:
        name: One of `DATASETS`.
        pad_to: When given, zero-pad the images to this height and width, the same on each side
            (an odd pixel goes to the bottom and right). Mean and std stay those of the images
            without padding.
        data_dir: For `"cifar10"`, the folder cifar-10-batches-bin or the one it lies in.
        limit: When given, only the first `limit` training images, 1 up to their number; mean and
            std are theirs. They are taken as they come, so the classes aren't balanced any more.
            The test half stays whole.

    Returns:
        The data set; its arrays are read-only.

    Raises:
        ValueError: The name is unknown, the images are larger than `pad_to`, there are fewer than
            `limit`, `data_dir` is missing or not needed, or a file is missing or damaged.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; available: {', '.join(DATASETS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: it must be at least 1 training image")
    if name != "cifar10" and data_dir is not None:
        raise ValueError(
            f"{name} is inside the package and reads no files: leave out --data-dir {data_dir}"
        )
    halves, names, max_value, source = _open(name, data_dir, limit)
    (train_images, train_labels), (test_images, test_labels) = halves
    if limit is not None and limit > len(train_images):
        raise ValueError(
            f"limit is {limit}: {name} has {len(train_images)} training images, ask for as many "
            "or fewer"
        )
    train_images, train_labels = train_images[:limit], train_labels[:limit]

    mean, std = _channel_statistics(train_images, max_value)
    if pad_to is not None:
        train_images, test_images = _pad(train_images, pad_to), _pad(test_images, pad_to)
    for array in (train_images, train_labels, test_images, test_labels):
        array.flags.writeable = False
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=names,
        max_value=max_value,
        mean=mean,
        std=std,
        source=source,
    )


def _open(
    name: str, data_dir: str | Path | None, limit: int | None
) -> tuple[tuple[Half, Half], tuple[str, ...], float, str]:
    """Return both halves (the training half may be cut to `limit`), names, max_value, source."""
    if name == "fashion":
        source = "Fashion-MNIST, (c) 2017 Zalando SE, MIT license; a subset of 2000 and 500 images"
        return _read_embedded("fashion_2000_500.npz"), _FASHION_NAMES, 255.0, source
    if name == "digits":
        digit_names = tuple(str(digit) for digit in range(10))
        source = "UCI Optical Recognition of Handwritten Digits, test half, by way of scikit-learn"
        return _read_embedded("digits.npz"), digit_names, 16.0, source
    if name == "shapes32":
        train_images, train_labels, test_images, test_labels = make_shapes()
        source = "synthetic: colored shapes and patterns drawn by this package, not photographs"
        halves = (train_images, train_labels), (test_images, test_labels)
        return halves, SHAPE_NAMES, 255.0, source
    if data_dir is None:
        raise ValueError(
            f"cifar10 isn't inside the package: give --data-dir FOLDER with {FOLDER_NAME}"
        )
    folder = find_folder(Path(data_dir))
    source = f"CIFAR-10 (Krizhevsky 2009), binary version, read from {folder}"
    return read_cifar10(folder, limit), read_class_names(folder), 255.0, source


def _read_embedded(file_name: str) -> tuple[Half, Half]:
    try:
        # Opened here, because NumPy leaves a damaged archive that it opened itself open.
        with (_FOLDER / file_name).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            x_train, y_train, x_test, y_test = (file[key] for key in _KEYS)
    except FileNotFoundError:
        raise ValueError(f"the embedded file {file_name} is missing; reinstall minicst") from None
    # A bare .npy array has no context manager, hence TypeError and AttributeError.
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(f"the embedded file {file_name} is damaged; reinstall minicst") from error
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        if images.dtype != np.uint8 or images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(f"the embedded file {file_name} is damaged; reinstall minicst")
    return (
        (x_train[..., None], y_train.astype(np.int64)),
        (x_test[..., None], y_test.astype(np.int64)),
    )


def _channel_statistics(
    images: npt.NDArray[np.uint8], max_value: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # Counting the values first makes the sums exact and needs no floating-point copy. bincount
    # makes an int64 copy, so it gets a part of the images at a time.
    values = np.arange(256) / max_value
    mean, std = [], []
    for channel in range(images.shape[3]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), _COUNTED_AT_ONCE):
            part = images[start : start + _COUNTED_AT_ONCE, ..., channel]
            counts += np.bincount(part.ravel(), minlength=256)
        center = float(counts @ values) / counts.sum()
        mean.append(float(center))
        std.append(float(np.sqrt(counts @ (values - center) ** 2 / counts.sum())))
    return tuple(mean), tuple(std)


def _pad(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    height, width = images.shape[1:3]
    if max(height, width) > size:
        raise ValueError(f"images of {height}x{width} are larger than pad_to {size}")
    if height == width == size:
        return images
    sides = [((size - length) // 2, (size - length + 1) // 2) for length in (height, width)]
    return np.pad(images, ((0, 0), *sides, (0, 0)))

"""Data sets by name: three come with the package, the others are read from files."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicst.data.cifar import open_cifar
from minicst.data.dataset import Dataset, Images
from minicst.data.download import Show
from minicst.data.idx import COLLECTIONS, Half, open_idx
from minicst.data.npz import KEYS, UNREADABLE, open_npz
from minicst.data.shapes import CLASS_NAMES as SHAPE_NAMES
from minicst.data.shapes import make_shapes
from minicst.randomness import rng_for

EMBEDDED = ("fashion", "digits", "shapes32")
DATASETS = (*EMBEDDED, "fashion-mnist", "mnist", "cifar10", "cifar100", "folder", "npz")

_FOLDER = Path(__file__).parent
_COUNTED_AT_ONCE = 2000  # images
_HELD_OUT_SEED = 0  # not a run's: every run of a data set is validated on the same images

Indices = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What a reader gives; images are arrays, or read lazily by `subset` (a folder's)."""

    train: tuple[Images, Indices]
    test: tuple[Images, Indices]
    class_names: tuple[str, ...]
    max_value: float
    source: str
    # Given, or else computed from the training images.
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def load_dataset(
    name: str,
    pad_to: int | None = None,
    data_dir: str | Path | None = None,
    limit: int | None = None,
    *,
    verify: bool = True,
    validation: float = 0.0,
    image_size: int = 224,
    progress: Show = None,
) -> Dataset:
    """Load a data set.

    Inside the package, without any file or network:

    - `"fashion"`: a subset of Fashion-MNIST, 28x28x1, 2000 train and 500 test, balanced.
    - `"digits"`: handwritten digits, 8x8x1, 1437 train and 360 test, stratified, values 0..16.
    - `"shapes32"`: synthetic colored shapes and patterns, 32x32x3, 2000 train and 500 test,
      balanced, computed on first use (about half a second) and kept.

    From `data_dir`, else from the cache folder (environment variable MINICST_DATA, else the
    user's cache folder), else downloaded into it:

    - `"cifar10"`, `"cifar100"`: photographs, 32x32x3, 50000 train and 10000 test, balanced; see
      `minicst.data.cifar.open_cifar`.
    - `"mnist"`, `"fashion-mnist"`: digits and clothes, 28x28x1, 60000 train and 10000 test; see
      `minicst.data.idx.open_idx`.

    From `data_dir` only:

    - `"folder"`: image files in one folder per class, as ImageNet's, decoded when they are used;
      see `minicst.data.folder.open_image_folder`.
    - `"npz"`: a .npz file of one's own; see `minicst.data.npz.open_npz`.

    Args:
        name: One of `DATASETS`.
        pad_to: When given, zero-pad the images to this height and width, the same on each side
            (an odd pixel goes to the bottom and right). Mean and std stay those of the images
            without padding. Images of a folder aren't padded, they have `image_size`.
        data_dir: Folder or file that is read, see above.
        limit: When given, only this many training images, 1 up to their number; mean and std are
            theirs. They are the first ones as they come, so the classes aren't balanced any more;
            of a folder, whose images are sorted by class, they are evenly spaced. The images
            that are evaluated stay all.
        verify: Compare files with their published checksums and sizes. Without it copies and
            miniatures in the same layout are read. Downloads are always compared.
        validation: Share of the training images, 0 up to and without 1, that is held out and
            takes the place of the test images, which then aren't evaluated at all. Of each
            class the same share, rounded, is drawn; the draw depends on nothing but the labels:
            neither on a run's seed nor on `limit`, which counts what is left.
        image_size: Height and width of a folder's images.
        progress: None shows a download's progress on stderr where that is a terminal, False
            doesn't; or a bar of one's own, see `minicst.data.download.Bar`.

    Returns:
        The data set; its arrays are read-only. Its `source` says where the images come from and
        whether their bytes are the published ones.

    Raises:
        ValueError: The name is unknown, an argument is out of range, the images are larger than
            `pad_to`, `data_dir` is missing or not needed, a file is missing, damaged or not the
            published one, or a download fails.
    """
    _check_arguments(name, data_dir, limit, validation)
    try:
        opened = _open(
            name,
            Path(data_dir) if data_dir is not None else None,
            None if validation else limit,  # held-out images are drawn from all
            verify=verify,
            image_size=image_size,
            progress=progress,
        )
    except OSError as error:
        raise ValueError(
            f"{name}: can't read its files ({error}); check the path and its permissions"
        ) from error
    (train_images, train_labels), (test_images, test_labels) = opened.train, opened.test
    left = np.arange(len(train_labels), dtype=np.int64)
    if validation:
        held_out = _draw_held_out(name, train_labels, validation)
        test_images, test_labels = _take(train_images, held_out), train_labels[held_out]
        left = np.setdiff1d(left, held_out, assume_unique=True)
    if limit is not None:
        left = _limited(name, left, limit, spread=name == "folder")
    if len(left) < len(train_labels):
        train_images, train_labels = _take(train_images, left), train_labels[left]

    mean, std = opened.mean, opened.std
    if mean is None or std is None:
        assert isinstance(train_images, np.ndarray)  # of files they are given
        mean, std = _channel_statistics(train_images, opened.max_value)
    if pad_to is not None:
        train_images, test_images = _pad(train_images, pad_to), _pad(test_images, pad_to)
    for array in (train_images, train_labels, test_images, test_labels):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return Dataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=opened.class_names,
        max_value=opened.max_value,
        mean=mean,
        std=std,
        source=opened.source,
        evaluated_on="validation" if validation else "test",
    )


def _check_arguments(
    name: str, data_dir: str | Path | None, limit: int | None, validation: float
) -> None:
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; available: {', '.join(DATASETS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: it must be at least 1 training image")
    if not 0 <= validation < 1:
        raise ValueError(
            f"validation is {validation}: it is a share of the training images, 0 up to and "
            "without 1"
        )
    if name in EMBEDDED and data_dir is not None:
        raise ValueError(
            f"{name} is inside the package and reads no files: leave out --data-dir {data_dir}"
        )


def _open(
    name: str,
    data_dir: Path | None,
    limit: int | None,
    *,
    verify: bool,
    image_size: int,
    progress: Show,
) -> _Opened:
    """Read a data set; its training half may already be cut to the first `limit` images."""
    if name == "fashion":
        source = "Fashion-MNIST, (c) 2017 Zalando SE, MIT license; a subset of 2000 and 500 images"
        fashion_names = COLLECTIONS["fashion-mnist"].class_names
        return _Opened(*_read_embedded("fashion_2000_500.npz"), fashion_names, 255.0, source)
    if name == "digits":
        digit_names = tuple(str(digit) for digit in range(10))
        source = "UCI Optical Recognition of Handwritten Digits, test half, by way of scikit-learn"
        return _Opened(*_read_embedded("digits.npz"), digit_names, 16.0, source)
    if name == "shapes32":
        train_images, train_labels, test_images, test_labels = make_shapes()
        source = "synthetic: colored shapes and patterns drawn by this package, not photographs"
        train, test = (train_images, train_labels), (test_images, test_labels)
        return _Opened(train, test, SHAPE_NAMES, 255.0, source)
    if name in ("cifar10", "cifar100"):
        halves, names, source = open_cifar(name, data_dir, limit, verify=verify, progress=progress)
        return _Opened(*halves, names, 255.0, source)
    if name in COLLECTIONS:
        halves, names, source = open_idx(name, data_dir, verify=verify, progress=progress)
        return _Opened(*halves, names, 255.0, source)
    if data_dir is None:
        wanted = "FILE.npz" if name == "npz" else "FOLDER with train/CLASS/ and val/CLASS/"
        raise ValueError(f"{name} is a data set of your own: give --data-dir {wanted}")
    if name == "npz":
        halves, names, source = open_npz(data_dir)
        return _Opened(*halves, names, 255.0, source)
    from minicst.data.folder import open_image_folder

    train_files, test_files, names, mean, std, source = open_image_folder(data_dir, image_size)
    return _Opened(train_files, test_files, names, 255.0, source, mean, std)


def _draw_held_out(name: str, labels: Indices, share: float) -> Indices:
    """Return the sorted indices of `share` of each class, leaving at least one image a class."""
    rng = rng_for(_HELD_OUT_SEED, "validation")
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        count = min(int(np.floor(share * len(members) + 0.5)), max(len(members) - 1, 0))
        chosen.append(rng.permutation(members)[:count])
    held_out = np.sort(np.concatenate(chosen))
    if held_out.size == 0:
        raise ValueError(
            f"validation is {share}: of {name}'s {len(labels)} training images that holds out "
            "none of any class; ask for a larger share"
        )
    return held_out


def _limited(name: str, left: Indices, limit: int, *, spread: bool) -> Indices:
    if limit > len(left):
        raise ValueError(
            f"limit is {limit}: {name} has {len(left)} training images, ask for as many or fewer"
        )
    return left[np.arange(limit) * len(left) // limit] if spread else left[:limit]


def _take(images: Images, indices: Indices) -> Images:
    """Return the images at increasing indices: a view where they are the first ones."""
    if not isinstance(images, np.ndarray):
        return images.subset(indices)
    if len(indices) and indices[-1] == len(indices) - 1:
        return images[: len(indices)]
    return images[indices]


def _read_embedded(file_name: str) -> tuple[Half, Half]:
    try:
        # Opened here, because NumPy leaves a damaged archive that it opened itself open.
        with (_FOLDER / file_name).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            x_train, y_train, x_test, y_test = (file[key] for key in KEYS)
    except FileNotFoundError:
        raise ValueError(f"the embedded file {file_name} is missing; reinstall minicst") from None
    except (KeyError, *UNREADABLE) as error:
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


def _pad(images: Images, size: int) -> Images:
    height, width = images.shape[1:3]
    if max(height, width) > size:
        raise ValueError(f"images of {height}x{width} are larger than pad_to {size}")
    if height == width == size:
        return images
    if not isinstance(images, np.ndarray):
        raise ValueError(
            f"pad_to is {size}: images of a folder aren't padded, give image_size {size} instead"
        )
    sides = [((size - length) // 2, (size - length + 1) // 2) for length in (height, width)]
    return np.pad(images, ((0, 0), *sides, (0, 0)))

"""Image folders laid out as ImageNet's: root/train/CLASS/... and root/val/CLASS/..."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicst.data.images import ImageFiles

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
TRAIN_NAME = "train"
TEST_NAMES = ("val", "validation", "test")

# Of ImageNet's training images on the scale 0..1, as published with fb.resnet.torch and
# torchvision's models; kept for other folders too, so that networks can be compared.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FolderHalf = tuple[ImageFiles, npt.NDArray[np.int64]]


def open_image_folder(
    root: Path, image_size: int = 224
) -> tuple[FolderHalf, FolderHalf, tuple[str, ...], tuple[float, ...], tuple[float, ...], str]:
    """List the images of a folder without opening one.

    The second half is root/val, else root/validation, else root/test. Class folders sorted by
    name are classes 0..C-1 of both halves; images may lie deeper in them. An image is a file whose
    name ends, in any case, in one of `EXTENSIONS`. Names that start with a dot are passed over.
    Links are followed, out of the root too, because data sets are put together from links; each
    real folder is read once a class, so a loop of links ends. A dangling link counts as a file that
    can't be read; what is neither file nor folder (a pipe, a device) is passed over.

    Args:
        root: Folder with the two halves.
        image_size: Height and width of what will be read, at least 1.

    Returns:
        `((train_images, train_labels), (test_images, test_labels), class_names, mean, std,
        source)`; labels are int64 (n,), mean and std are ImageNet's.

    Raises:
        ValueError: A half is missing or flat, images lie beside the class folders, a training
            class has no image, the second half has a class that training hasn't, or a folder
            can't be listed.
    """
    root = Path(root)
    try:
        train_folder, test_folder = _find_halves(root)
        class_names = _class_folders(train_folder)
        test_names = _class_folders(test_folder)
        unknown = [name for name in test_names if name not in set(class_names)]
        if unknown:
            raise ValueError(
                f"image folder: {test_folder} has class {unknown[0]!r} ({len(unknown)} such) that "
                f"{train_folder} hasn't: give both halves the same class folders"
            )
        train = _list_half(train_folder, class_names, image_size)
        test = _list_half(test_folder, class_names, image_size)
    except OSError as error:
        raise ValueError(f"image folder: {error}; check the folder and its permissions") from None
    empty = np.setdiff1d(np.arange(len(class_names)), train[1])
    if empty.size:
        raise ValueError(
            f"image folder: class {class_names[empty[0]]!r} ({empty.size} such) has no image in "
            f"{train_folder}: fill its folder or remove it"
        )
    source = (
        f"image folder {root}: {len(train[1])} images of {len(class_names)} classes in "
        f"{train_folder.name}, {len(test[1])} in {test_folder.name}"
    )
    return train, test, class_names, IMAGENET_MEAN, IMAGENET_STD, source


def _find_halves(root: Path) -> tuple[Path, Path]:
    if not root.is_dir():
        raise ValueError(f"image folder: there is no folder {root}")
    train = root / TRAIN_NAME
    tests = [root / name for name in TEST_NAMES if (root / name).is_dir()]
    if not train.is_dir() or not tests:
        missing = "train" if not train.is_dir() else "val (or validation or test)"
        raise ValueError(
            f"image folder: {root} has no folder {missing}; needed are "
            "train/CLASS/image.jpg and val/CLASS/image.jpg"
        )
    return train, tests[0]


def _class_folders(half: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders."""
    folders, images, archives = [], [], []
    with os.scandir(half) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            elif _is_image(entry.name):
                images.append(entry.name)
            elif entry.name.lower().endswith(".tar"):
                archives.append(entry.name)
    if images:
        raise ValueError(
            f"image folder: {half} holds {len(images)} images outside of class folders "
            f"({min(images)}), so their classes aren't known: move each into the folder of its "
            "class. For ImageNet's validation images the classes are in the development kit, "
            "ILSVRC2012_devkit_t12: line N of data/ILSVRC2012_validation_ground_truth.txt is the "
            "ILSVRC2012_ID of ILSVRC2012_val_000NNNNN.JPEG, and data/meta.mat gives the folder "
            "name (WNID, such as n01440764) of each ID"
        )
    if not folders:
        unpack = f"; unpack {min(archives)} and the others first" if archives else ""
        raise ValueError(f"image folder: {half} has no class folders{unpack}")
    return tuple(sorted(folders))


def _list_half(half: Path, class_names: tuple[str, ...], image_size: int) -> FolderHalf:
    """List the images of all classes, sorted by class and path."""
    paths: list[str] = []
    counts = []
    for name in class_names:
        found = _image_paths(half, name)
        paths += found
        counts.append(len(found))
    if not paths:
        raise ValueError(
            f"image folder: {half} has no image ({', '.join(EXTENSIONS)}) in its class folders"
        )
    labels = np.repeat(np.arange(len(class_names), dtype=np.int64), counts)
    return ImageFiles(half, paths, labels, image_size), labels


def _image_paths(half: Path, class_name: str) -> list[str]:
    """Return the sorted paths, relative to `half`, of the images of a class."""
    if not (half / class_name).is_dir():
        return []
    found, waiting, seen = [], [class_name], set()
    while waiting:
        # Smallest name first, so that of two links to one folder always the same one counts.
        waiting.sort(reverse=True)
        folder = waiting.pop()
        status = os.stat(half / folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(half / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = f"{folder}/{entry.name}"
                if _is_folder(entry):
                    waiting.append(path)
                elif _is_image(entry.name) and _is_file_or_dangling(entry):
                    found.append(path)
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file_or_dangling(entry: os.DirEntry[str]) -> bool:
    if entry.is_symlink():  # os.path, since an entry raises where a link leads to itself
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()

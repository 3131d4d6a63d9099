"""A data set: labeled images in a training and a test half."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minicst.data.images import ImageFiles

Images = npt.NDArray[np.uint8] | ImageFiles


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labeled images, split into a training and a test half.

    Attributes:
        name: Name that `load_dataset` knows it by.
        train_images: Raw pixels, uint8 (n, h, w, c), 0..`max_value`; or files that are read when
            their batch is made. Files are taken on trust here: nothing is opened.
        train_labels: Class indices, int64 (n,), 0..num_classes-1.
        test_images: Likewise, (m, h, w, c).
        test_labels: Class indices, int64 (m,).
        class_names: Name of each class, in the order of the labels.
        max_value: Raw value that stands for 1.
        mean: Mean of each channel of the training images, divided by `max_value`.
        std: Standard deviation of each channel, likewise.
        source: Where the images come from, one line.
        evaluated_on: What the test half is: "test", or "validation" where it was split off the
            training images and the test images stay untouched.

    Raises:
        ValueError: The fields do not fit each other or the shapes and dtypes above.
    """

    name: str
    train_images: Images
    train_labels: npt.NDArray[np.int64]
    test_images: Images
    test_labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    max_value: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    evaluated_on: str = "test"

    def __post_init__(self) -> None:
        for half, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if not isinstance(images, ImageFiles) and (
                images.dtype != np.uint8 or images.ndim != 4 or images.size == 0
            ):
                raise ValueError(
                    f"{half}_images must be a non-empty uint8 (n, h, w, c), "
                    f"got {images.dtype} {images.shape}"
                )
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{half}_labels must be int64 ({len(images)},), "
                    f"got {labels.dtype} {labels.shape}"
                )
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise ValueError(f"{half}_labels must lie in 0..{self.num_classes - 1}")
            if not isinstance(images, ImageFiles) and images.max() > self.max_value:
                raise ValueError(f"{half}_images hold {images.max()}, above {self.max_value}")
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError("training and test images differ in shape")
        if not len(self.mean) == len(self.std) == self.input_shape[2]:
            raise ValueError("mean and std must have one value a channel")
        if self.evaluated_on not in ("test", "validation"):
            raise ValueError(f"evaluated_on must be test or validation, got {self.evaluated_on!r}")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of one image."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def unreadable(self) -> dict[str, str]:
        """Why each image file that couldn't be read up to now couldn't, by its path."""
        found: dict[str, str] = {}
        for images in (self.train_images, self.test_images):
            if isinstance(images, ImageFiles):
                found |= images.unreadable
        return found

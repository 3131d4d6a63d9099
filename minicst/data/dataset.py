"""A data set: labeled images in a training and a test half."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labeled images, split into a training and a test half.

    Attributes:
        name: Name that `load_dataset` knows it by.
        train_images: Raw pixels, uint8 (n, h, w, c), 0..`max_value`.
        train_labels: Class indices, int64 (n,), 0..num_classes-1.
        test_images: Raw pixels, uint8 (m, h, w, c).
        test_labels: Class indices, int64 (m,).
        class_names: Name of each class, in the order of the labels.
        max_value: Raw value that stands for 1.
        mean: Mean of each channel of the training images, divided by `max_value`.
        std: Standard deviation of each channel, likewise.
        source: Where the images come from, one line.

    Raises:
        ValueError: The fields do not fit each other or the shapes and dtypes above.
    """

    name: str
    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    max_value: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str

    def __post_init__(self) -> None:
        for half, images, labels in (
            ("train", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
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
            if images.max() > self.max_value:
                raise ValueError(f"{half}_images hold {images.max()}, above {self.max_value}")
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError("training and test images differ in shape")
        if not len(self.mean) == len(self.std) == self.input_shape[2]:
            raise ValueError("mean and std must have one value a channel")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (h, w, c) of one image."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

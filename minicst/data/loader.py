"""Batches of normalized images, the same bits for the same seed wherever an epoch starts."""

import operator
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from minicst.data.augment import crop_flip
from minicst.data.dataset import Dataset, Images
from minicst.data.images import ImageFiles
from minicst.data.prefetch import prefetch as prefetched
from minicst.data.prefetch import prefetch_parts
from minicst.randomness import rng_for

Augment = Literal["none", "crop-flip", "resized-crop"]


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of an epoch.

    Attributes:
        index: Position in the epoch, from 0.
        images: Normalized images, float32 (n, h, w, c).
        labels: Class indices, int64 (n,).
    """

    index: int
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


class Loader:
    """Cuts a data set into batches, epoch after epoch.

    No epoch depends on those before it. The order of an epoch is drawn from the stream
    `(seed, "order", epoch)`, the augmentation of a batch of arrays from
    `(seed, "augment", epoch, batch index)` and that of an image file from
    `(seed, "augment", epoch, batch index, position in the batch)`. So an epoch that is resumed in
    its middle gives the same bits as one run through, with and without prefetching, with any number
    of threads.

    Args:
        images: Raw pixels, uint8 (n, h, w, c), n at least 1, not copied; or files, which are read
            when their batch is made.
        labels: Class indices, int64 (n,), 0 or more. Not copied.
        batch_size: Images a batch, at least 1.
        mean: Mean of each channel on the scale 0..1, length c.
        std: Standard deviation of each channel on the scale 0..1, above 0, length c.
        max_value: Raw value that stands for 1, above 0.
        seed: Seed of order and augmentation, 0..2**64-1.
        shuffle: Draw a new order each epoch; otherwise the order of the arrays.
        drop_last: Leave out a last batch that is smaller than `batch_size`.
        augment: `"none"`, or `"crop-flip"`: zero-pad by an eighth of the size (4 pixels for 32,
            at least 1), crop at a random place, flip left to right half of the time, all on raw
            pixels before normalization. Flipping changes what a digit means. Files: `"none"` shows
            the middle, and `"crop-flip"`, the default of training, means `"resized-crop"`, a random
            part of random size, see `ImageFiles.read_one`.
        prefetch: Compute up to two batches ahead in the background.
        workers: Threads that read files, at least 1, with prefetching and without; None for one on
            each core. Arrays take one thread if they are prefetched, else none.
        num_classes: When given, labels must lie below it.

    Attributes:
        waited_seconds: How long the consumer of all epochs up to now waited for batches.

    Raises:
        ValueError: An argument is not as described, the lengths of images and labels differ, or
            `drop_last` would leave no batch.
    """

    def __init__(
        self,
        images: Images,
        labels: npt.NDArray[np.int64],
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        max_value: float,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        augment: Augment = "none",
        prefetch: bool = True,
        workers: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        _check_arrays(images, labels, num_classes)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if drop_last and batch_size > len(images):
            raise ValueError(
                f"batch_size {batch_size} is more than the {len(images)} images, and drop_last "
                f"keeps whole batches only: take at most {len(images)} (--batch-size), or more "
                "images (--limit)"
            )
        if augment not in get_args(Augment):
            raise ValueError(
                f"unknown augment {augment!r}; available: {', '.join(get_args(Augment))}"
            )
        if augment == "resized-crop" and not isinstance(images, ImageFiles):
            raise ValueError(
                "augment 'resized-crop' is for image files of any size; arrays of one size take "
                "'crop-flip' or 'none'"
            )
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1 thread, got {workers}")
        rng_for(seed)  # A bad seed shows here and not in the first epoch.
        self.images = images
        self.labels = labels
        self.batch_size = operator.index(batch_size)
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.augment = augment
        self.prefetch = prefetch
        self.workers = _usable_cores() if workers is None else operator.index(workers)
        self.waited_seconds = 0.0
        self._scale, self._shift = _affine(mean, std, max_value, images.shape[3])

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole if self.drop_last or rest == 0 else whole + 1

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """Return an iterator over the batches of one epoch.

        Args:
            epoch: Number of the epoch, from 0.
            start: Index of the first batch to give, 0..len(self); with len(self) there is none.

        Returns:
            A generator of `Batch`, indices `start`..len(self)-1. Leaving its loop early or
            closing it stops the background thread.

        Raises:
            ValueError: `epoch` or `start` is out of range.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        if not 0 <= start <= len(self):
            raise ValueError(f"start must lie in 0..{len(self)}, got {start}")
        count = len(self.images)
        if self.shuffle:
            order = rng_for(self.seed, "order", epoch).permutation(count)
        else:
            order = np.arange(count)

        return self._timed(self._batches(epoch, start, order))

    def _timed(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """Yield the batches and add up how long each took to come."""
        try:
            while True:
                begun = time.perf_counter()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                finally:
                    self.waited_seconds += time.perf_counter() - begun
                yield batch
                del batch
        finally:
            batches.close()

    def _batches(
        self, epoch: int, start: int, order: npt.NDArray[np.int64]
    ) -> Generator[Batch, None, None]:
        files = self.images
        if isinstance(files, ImageFiles):

            def begin(index: int) -> tuple[Batch, int, Callable[[int], None]]:
                return self._begin(files, epoch, index, order)

            ahead = 2 if self.prefetch else 0
            return prefetch_parts(begin, start, len(self), self.workers, ahead)
        array = files

        def make(index: int) -> Batch:
            return self._make(array, epoch, index, order)

        if self.prefetch:
            return prefetched(make, start, len(self))
        return (make(index) for index in range(start, len(self)))

    def _chosen(self, index: int, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def _make(
        self, array: npt.NDArray[np.uint8], epoch: int, index: int, order: npt.NDArray[np.int64]
    ) -> Batch:
        chosen = self._chosen(index, order)
        raw = array[chosen]
        if self.augment == "crop-flip":
            raw = crop_flip(raw, rng_for(self.seed, "augment", epoch, index))
        images = raw.astype(np.float32)
        images *= self._scale
        images += self._shift
        return Batch(index, images, self.labels[chosen])

    def _begin(
        self, files: ImageFiles, epoch: int, index: int, order: npt.NDArray[np.int64]
    ) -> tuple[Batch, int, Callable[[int], None]]:
        """Return a batch without its images, their number, and what reads one of them into it."""
        chosen = self._chosen(index, order)
        images = np.empty((len(chosen), *files.shape[1:]), np.float32)

        def fill(position: int) -> None:
            rng = None
            if self.augment != "none":
                rng = rng_for(self.seed, "augment", epoch, index, position)
            image = images[position]
            image[...] = files.read_one(int(chosen[position]), rng)
            image *= self._scale
            image += self._shift

        return Batch(index, images, self.labels[chosen]), len(chosen), fill


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_arrays(images: Images, labels: npt.NDArray[np.int64], num_classes: int | None) -> None:
    if isinstance(images, ImageFiles):
        pass  # never empty, and of one shape by themselves
    elif images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise ValueError(
            f"images must be a non-empty uint8 (n, h, w, c), got {images.dtype} {images.shape}"
        )
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise ValueError(f"labels must be int64 (n,), got {labels.dtype} {labels.shape}")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise ValueError(f"labels must be 0 or more, got {low}")
    if num_classes is not None and high >= num_classes:
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {high}")


def _affine(
    mean: Sequence[float], std: Sequence[float], max_value: float, channels: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return float32 scale and shift, (c,), with (x / max_value - mean) / std = x scale + shift."""
    mean64 = np.asarray(mean, dtype=np.float64)
    std64 = np.asarray(std, dtype=np.float64)
    if mean64.shape != (channels,) or std64.shape != (channels,):
        raise ValueError(
            f"mean and std must have one value for each of {channels} channels, "
            f"got shapes {mean64.shape} and {std64.shape}"
        )
    if not (np.isfinite(mean64).all() and np.isfinite(std64).all() and (std64 > 0).all()):
        raise ValueError(
            f"mean must be finite and std finite and above 0, got {mean64.tolist()} "
            f"and {std64.tolist()}"
        )
    if not (np.isfinite(max_value) and max_value > 0):
        raise ValueError(f"max_value must be finite and above 0, got {max_value}")
    scale = 1.0 / (max_value * std64)
    return scale.astype(np.float32), (-mean64 / std64).astype(np.float32)


def train_loader(
    dataset: Dataset,
    batch_size: int,
    seed: int = 0,
    augment: Augment = "none",
    *,
    prefetch: bool = True,
    workers: int | None = None,
) -> Loader:
    """Return a shuffling `Loader` over the training images that drops a smaller last batch.

    Args:
        dataset: Data set whose training half is loaded, normalized with its mean and std.
        batch_size: Images a batch, 1..number of training images.
        seed: Seed of order and augmentation.
        augment: `"none"`, `"crop-flip"` or, for image files, `"resized-crop"`, see `Loader`.
        prefetch: Compute up to two batches ahead in the background.
        workers: Threads that read image files, None for one on each core.

    Raises:
        ValueError: An argument is out of range, see `Loader`.
    """
    return Loader(
        dataset.train_images,
        dataset.train_labels,
        batch_size=batch_size,
        mean=dataset.mean,
        std=dataset.std,
        max_value=dataset.max_value,
        seed=seed,
        augment=augment,
        prefetch=prefetch,
        workers=workers,
        num_classes=dataset.num_classes,
    )


def test_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    prefetch: bool = True,  # noqa: PT028 (a loader, not a test)
    workers: int | None = None,  # noqa: PT028
) -> Loader:
    """Return a `Loader` that gives each test image once, in order, without augmentation.

    Args:
        dataset: Data set whose test half is loaded, normalized with the training mean and std.
        batch_size: Images a batch, at least 1; the last batch may be smaller.
        prefetch: Compute up to two batches ahead in the background.
        workers: Threads that read image files, None for one on each core.

    Raises:
        ValueError: `batch_size` or `workers` is below 1.
    """
    return Loader(
        dataset.test_images,
        dataset.test_labels,
        batch_size=batch_size,
        mean=dataset.mean,
        std=dataset.std,
        max_value=dataset.max_value,
        shuffle=False,
        drop_last=False,
        prefetch=prefetch,
        workers=workers,
        num_classes=dataset.num_classes,
    )


# Its name makes test runners take it for a test wherever it is imported.
test_loader.__test__ = False  # type: ignore[attr-defined]

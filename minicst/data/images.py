"""Images in files, decoded when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# The plugins are imported here, because threads that load them on first use race.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from minicst.data.augment import crop_box, draw_crop

# What a file holds decides, not its name: ImageNet has a PNG named .JPEG. Formats are named,
# because some of Pillow's others run programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
MAX_PIXELS = 2**28 // 3  # Pillow's own limit against small files that unpack to gigabytes
RESIZE_RATIO = 256 / 224  # short side over crop, as ImageNet is evaluated since Krizhevsky 2012
_DRAFT_GAP = 2.0  # reducing_gap of Image.thumbnail: the decoder leaves at least twice the pixels

_Box = tuple[float, float, float, float]
_Draws = tuple[npt.NDArray[np.float64], bool]


class ImageFiles:
    """Labeled image files of one shape, read on demand.

    Nothing is opened before an image is asked for. A file that can't be read is remembered with
    the reason, and the next readable file of the same class stands for it, in the order of the
    paths and around its end: the same pixels for the same files, whoever asks first.

    Reading may go on in many threads at once; Pillow lets go of Python's lock while it decodes.

    Args:
        folder: Where the paths start.
        paths: Relative to `folder`, "class/name.jpg", n of them, at least 1.
        labels: Class of each, int64 (n,).
        image_size: Height and width of what is read, at least 1.

    Attributes:
        unreadable: Why each file that couldn't be read up to now couldn't, by its path.

    Raises:
        ValueError: There is no path, the lengths differ, or `image_size` is below 1.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        labels: npt.NDArray[np.int64],
        image_size: int,
    ) -> None:
        if not len(paths):
            raise ValueError(f"{folder}: no image files given; give at least one")
        if labels.shape != (len(paths),):
            raise ValueError(f"{len(paths)} paths but labels of shape {labels.shape}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
        self.folder = folder
        self.paths = paths
        self.labels = labels
        self.image_size = image_size
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (n, image_size, image_size, 3) that all images would have as one array."""
        return len(self.paths), self.image_size, self.image_size, 3

    def subset(self, indices: npt.ArrayLike) -> ImageFiles:
        """Return the files at these indices, int (m,), m at least 1, in their order.

        It keeps a record of unreadable files of its own, and takes no file from outside of itself
        in place of one: a training subset never shows a validation image.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        paths = [self.paths[index] for index in chosen.tolist()]
        return ImageFiles(self.folder, paths, self.labels[chosen], self.image_size)

    def read(
        self,
        indices: npt.ArrayLike,
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Read the images at these indices, one after the other.

        Args:
            indices: int (m,), each in 0..n-1.
            rngs: One stream for each image to augment it, see `read_one`; or None.

        Returns:
            uint8 (m, image_size, image_size, 3), RGB.

        Raises:
            ValueError: As `read_one`.
        """
        chosen = np.asarray(indices, dtype=np.int64).tolist()
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for row, index in enumerate(chosen):
            images[row] = self.read_one(index, None if rngs is None else rngs[row])
        return images

    def read_one(self, index: int, rng: np.random.Generator | None = None) -> npt.NDArray[np.uint8]:
        """Read one image, resized and cropped.

        Without `rng`: the short side is resized to round(image_size 256 / 224) and the middle is
        cut out. With it: a random-resized crop (`crop_box`), flipped left to right half of the
        time. Both interpolate linearly, averaging where they shrink.

        Grey, palette, CMYK and transparent images become RGB, transparency dropped, 16-bit grey by
        its high byte. As in torchvision, the orientation that a camera wrote into EXIF is ignored.

        Args:
            index: 0..n-1.
            rng: Stream that crop and flip are drawn from, from its start.

        Returns:
            uint8 (image_size, image_size, 3).

        Raises:
            ValueError: No file of the image's class can be read.
        """
        draws = None if rng is None else draw_crop(rng)
        pixels = self._try(index, draws)
        if pixels is not None:
            return pixels
        members = np.flatnonzero(self.labels == self.labels[index])
        start = int(np.searchsorted(members, index))
        for other in np.roll(members, -start)[1:].tolist():
            pixels = self._try(other, draws)
            if pixels is not None:
                return pixels
        path = self.paths[index]
        raise ValueError(
            f"none of the {len(members)} images of class {path.split('/')[0]} in {self.folder} can "
            f"be read ({path}: {self.unreadable[self._name(index)]}); restore them, or take the "
            "class out of both halves"
        )

    def _name(self, index: int) -> str:
        return str(self.folder / self.paths[index])

    def _try(self, index: int, draws: _Draws | None) -> npt.NDArray[np.uint8] | None:
        """Read one file; None, and a note why, if that fails."""
        name = self._name(index)
        if name in self.unreadable:
            return None
        try:
            return _decode(name, self.image_size, draws)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise anything on damaged files
            self.unreadable[name] = " ".join(str(error).split()) or type(error).__name__
            return None


def center_box(width: int, height: int, size: int) -> _Box:
    """Return the part of an image that "resize the short side, cut out the middle" shows.

    With t = round(size 256 / 224) the short side becomes t and the long side
    floor(t long / short); size x size pixels are cut out of that at round((side - size) / 2), and
    the box is where they lie in the image. Reading just the box never makes the long side: an
    image of 1 x 60,000 pixels would become 256 x 15 million.

    Returns:
        (left, top, right, bottom) in pixels of the image, not whole numbers.
    """
    short = round(size * RESIZE_RATIO)
    edges = []
    for side in (width, height):
        resized = short * side // min(width, height)
        start = round((resized - size) / 2)
        edges.append((start * side / resized, (start + size) * side / resized))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _decode(path: str, size: int, draws: _Draws | None) -> npt.NDArray[np.uint8]:
    """Return the pixels of one file, (size, size, 3)."""
    with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels, more than {MAX_PIXELS}")
        if draws is None:
            box: _Box = center_box(width, height, size)
        else:
            box = crop_box(width, height, draws[0])
        # A JPEG decoder gives 1/2, 1/4 or 1/8 of the size for less work. How much is left out
        # depends on file and box only, so that bits stay the same.
        gap = min(box[2] - box[0], box[3] - box[1]) / (size * _DRAFT_GAP)
        if image.format == "JPEG" and gap >= 2.0:
            drafted = image.draft(None, (math.ceil(width / gap), math.ceil(height / gap)))
            if drafted is not None:
                factor_x, factor_y = drafted[1][2] / width, drafted[1][3] / height
                box = (box[0] * factor_x, box[1] * factor_y, box[2] * factor_x, box[3] * factor_y)
        rgb = _as_rgb(image)
        pixels = np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=box))
    if draws is not None and draws[1]:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _as_rgb(image: Any) -> Any:
    """Decode, and convert to RGB."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # convert() would clip all but the darkest 256 of 65,536 values to white.
        high = (np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)
        return Image.fromarray(high).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels (mode {image.mode}) have no known scale")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # the way that Pillow doesn't warn about
    return image.convert("RGB")

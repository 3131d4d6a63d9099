import io
import math
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from minicst.data.augment import crop_box, draw_crop
from minicst.data.images import MAX_PIXELS, ImageFiles, _decode, center_box
from minicst.randomness import rng_for

SIZE = 16


def _photo(width, height, key=0):
    """Smooth colours with some noise, as JPEG likes them."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [np.sin(x / 9 + c) * np.cos(y / 7 - c) * 90 + 120 for c in range(3)]
    noise = rng_for(key, "photo").integers(-9, 10, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(channels, -1) + noise, 0, 255).astype(np.uint8))


def _files(folder, *names, labels=None, size=SIZE):
    labels = np.zeros(len(names), np.int64) if labels is None else np.asarray(labels)
    return ImageFiles(folder, list(names), labels, size)


def _read(folder, name, rng=None, size=SIZE):
    files = _files(folder, name, size=size)
    pixels = files.read_one(0, rng)
    assert files.unreadable == {}
    return pixels


def _plain_evaluation(image, size):
    """As everybody writes it: resize the whole image, then cut."""
    short = round(size * 256 / 224)
    width, height = image.size
    if width <= height:
        image = image.resize((short, int(short * height / width)), Image.Resampling.BILINEAR)
    else:
        image = image.resize((int(short * width / height), short), Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2.0) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _naive_resize(pixels, box, size):
    """Average with the triangle 1 - |distance| / scale, a loop over outputs."""
    pixels = pixels.astype(float)
    for axis, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        length, scale = pixels.shape[axis], (high - low) / size
        reach = max(scale, 1.0)
        rows = []
        for i in range(size):
            center = low + (i + 0.5) * scale
            weights = [max(0.0, 1 - abs(j + 0.5 - center) / reach) for j in range(length)]
            rows.append(np.tensordot(weights, pixels, (0, axis)) / sum(weights))
        pixels = np.stack(rows, axis)
    return pixels


@pytest.mark.parametrize(
    ("shape", "size"),
    [((40, 30), 16), ((30, 41), 16), ((33, 33), 7), ((9, 12), 28), ((500, 375), 224), ((5, 1), 8)],
)
def test_evaluation_equals_resize_then_cut(tmp_path, shape, size):
    photo = _photo(*shape)
    photo.save(tmp_path / "a.png")
    got = _read(tmp_path, "a.png", size=size)
    assert got.dtype == np.uint8
    assert got.shape == (size, size, 3)
    assert got.flags.c_contiguous
    assert np.abs(got.astype(int) - _plain_evaluation(photo, size)).max() <= 1
    # Pillow rounds after each of two passes.
    oracle = _naive_resize(np.asarray(photo), center_box(*shape, size), size)
    assert np.abs(got - oracle).max() < 1.6


def test_augmentation_equals_a_loop_over_the_drawn_box(tmp_path):
    photo = _photo(45, 37)
    photo.save(tmp_path / "a.png")
    flips = set()
    for key in range(12):
        got = _read(tmp_path, "a.png", rng_for(3, key))
        tries, flip = draw_crop(rng_for(3, key))
        oracle = _naive_resize(np.asarray(photo), crop_box(45, 37, tries), SIZE)
        if flip:
            oracle = np.flip(oracle, 1)
        assert np.abs(got - oracle).max() < 1.6
        flips.add(flip)
    assert flips == {False, True}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_jpeg_decoded_at_reduced_size_looks_the_same(tmp_path, mode):
    _photo(700, 500).convert(mode).save(tmp_path / "a.jpg", quality=95)
    whole = Image.open(tmp_path / "a.jpg").convert("RGB")
    got = _read(tmp_path, "a.jpg")
    difference = np.abs(got.astype(int) - _plain_evaluation(whole, SIZE))
    assert difference.max() <= 6
    # The box moves with the reduced image: half a pixel off would show in the mean.
    assert difference.mean() < 1.5
    rng = rng_for(1)
    box = crop_box(*whole.size, draw_crop(rng_for(1))[0])
    plain = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
    if draw_crop(rng_for(1))[1]:
        plain = plain[:, ::-1]
    assert np.abs(_read(tmp_path, "a.jpg", rng).astype(int) - plain).mean() < 1.5


def test_small_jpeg_is_decoded_whole(tmp_path):
    _photo(60, 61).save(tmp_path / "a.jpg")
    whole = Image.open(tmp_path / "a.jpg")
    assert np.abs(_read(tmp_path, "a.jpg").astype(int) - _plain_evaluation(whole, SIZE)).max() <= 1


@pytest.mark.filterwarnings("error")
def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    color = (200, 100, 50)
    plain = Image.new("RGB", (20, 30), color)
    cases = {
        "rgb.png": (plain, color),
        "rgb.ppm": (plain, color),
        "rgb.bmp": (plain, color),
        "rgb.tif": (plain, color),
        "rgb.webp": (plain, color),
        "rgb.JPEG": (plain, color),
        "grey.png": (Image.new("L", (20, 30), 77), (77, 77, 77)),
        "grey.pgm": (Image.new("L", (20, 30), 77), (77, 77, 77)),
        "grey.jpg": (Image.new("L", (20, 30), 77), (77, 77, 77)),
        "one bit.png": (Image.new("1", (20, 30), 1), (255, 255, 255)),
        "palette.png": (plain.quantize(4), color),
        "alpha.png": (Image.new("RGBA", (20, 30), (*color, 0)), color),
        "grey alpha.png": (Image.new("LA", (20, 30), (77, 9)), (77, 77, 77)),
        "cmyk.jpg": (Image.new("CMYK", (20, 30), (55, 155, 205, 0)), color),
        "cmyk.tif": (Image.new("CMYK", (20, 30), (55, 155, 205, 0)), color),
        "sixteen.png": (Image.fromarray(np.full((30, 20), 300 * 64, np.uint16)), (75, 75, 75)),
    }
    for name, (image, wanted) in cases.items():
        image.save(tmp_path / name)
        for rng in (None, rng_for(0)):
            difference = np.abs(_read(tmp_path, name, rng).astype(int) - wanted)
            assert difference.max() <= 3, name
    # A palette with one alpha value a color: Pillow warns unless it goes by way of RGBA.
    photo = _photo(20, 30).quantize(8)
    photo.save(tmp_path / "plain.png")
    photo.save(tmp_path / "clear.png", transparency=bytes(range(0, 240, 30)))
    with Image.open(tmp_path / "clear.png") as image:
        assert isinstance(image.info["transparency"], bytes)
    assert np.array_equal(_read(tmp_path, "clear.png"), _read(tmp_path, "plain.png"))
    # By content, not by name: ImageNet has a PNG that is named .JPEG.
    plain.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.JPEG")
    assert np.abs(_read(tmp_path, "a.JPEG").astype(int) - color).max() <= 1


def test_orientation_is_ignored(tmp_path):
    photo = _photo(40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=exif)
    photo.save(tmp_path / "plain.jpg")
    assert np.array_equal(_read(tmp_path, "turned.jpg"), _read(tmp_path, "plain.jpg"))


def _png_header(width, height):
    """A PNG of a few bytes that claims to be large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [header, data, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def _broken(folder):
    """Write what can't be read; return the names."""
    stream = io.BytesIO()
    _photo(64, 64).save(stream, "JPEG")
    contents = {
        "cut.jpg": stream.getvalue()[: len(stream.getvalue()) // 2],
        "text.jpg": b"not an image",
        "empty.png": b"",
        "bomb.png": _png_header(60_000, 60_000),
        "below pillow's error.png": _png_header(11_000, 11_000),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    # Grey floats have no scale; and a path that isn't there any more.
    Image.fromarray(np.full((30, 20), 0.5, np.float32)).save(folder / "float.tif")
    return [*contents, "float.tif", "gone.jpg"]


def test_bomb_limit_is_pillow_s():
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("action", ["error", "ignore"])
def test_unreadable_is_replaced_by_the_next_of_its_class(tmp_path, action):
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        _check_replacement(tmp_path)


def _check_replacement(tmp_path):
    broken = _broken(tmp_path)
    for key in range(3):
        _photo(30, 20, key).save(tmp_path / f"{key}.png")
    # Class 0 is 0.png, the broken ones, 1.png; class 1, between them, is 2.png.
    names = ["0.png", *broken[:4], "2.png", *broken[4:], "1.png"]
    labels = [1 if name == "2.png" else 0 for name in names]
    files = _files(tmp_path, *names, labels=labels)
    got = files.read(np.arange(len(names)))
    assert list(files.unreadable) == [str(tmp_path / name) for name in broken]
    for name, pixels in zip(names, got, strict=True):
        shown = name if name[0] in "012" else "1.png"
        assert np.array_equal(pixels, _read(tmp_path, shown)), name
    reasons = [files.unreadable[str(tmp_path / name)] for name in broken]
    for reason, word in zip(
        reasons,
        ["truncated", "identify", "identify", "pixels", "pixels", "identify", "scale", "file"],
        strict=True,
    ):
        assert word in reason
        assert "\n" not in reason
    # Once more: counted once, and what is known to be broken draws the same crop.
    again = files.read([1, 2], [rng_for(5), rng_for(6)])
    fresh = _files(tmp_path, *names, labels=labels).read([1, 2], [rng_for(5), rng_for(6)])
    assert np.array_equal(again, fresh)
    assert np.array_equal(again[1], _read(tmp_path, "1.png", rng_for(6)))
    assert len(files.unreadable) == len(broken)
    # Around the end of the class.
    last = _files(tmp_path, "0.png", "1.png", "text.jpg", "2.png", labels=[0, 0, 0, 1])
    assert np.array_equal(last.read_one(2), _read(tmp_path, "0.png"))


def test_bomb_is_never_unpacked(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(_png_header(60_000, 60_000))
    (tmp_path / "b.png").write_bytes(_png_header(9_460, 9_460))  # just above the limit
    _photo(20, 20).save(tmp_path / "c.png")
    loads = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", lambda self: loads.append(self.size) or load(self)
    )
    files = _files(tmp_path, "a.png", "b.png", "c.png")
    with pytest.warns(Image.DecompressionBombWarning):
        files.read_one(0)
    assert set(loads) <= {(20, 20)}
    assert len(files.unreadable) == 2


def test_long_thin_image_never_becomes_large(tmp_path):
    Image.new("RGB", (1, 60_000), (9, 99, 199)).save(tmp_path / "a.png")
    for rng in (None, rng_for(0)):
        assert (_read(tmp_path, "a.png", rng, size=224) == (9, 99, 199)).all()


def test_class_without_a_readable_image_is_an_error(tmp_path):
    _broken(tmp_path)
    (tmp_path / "n01").mkdir()
    _photo(20, 20).save(tmp_path / "n01" / "good.png")
    (tmp_path / "n02").mkdir()
    (tmp_path / "text.jpg").rename(tmp_path / "n02" / "a.jpg")
    (tmp_path / "cut.jpg").rename(tmp_path / "n02" / "b.jpg")
    files = _files(tmp_path, "n01/good.png", "n02/a.jpg", "n02/b.jpg", labels=[0, 1, 1])
    for index in (1, 2):
        with pytest.raises(
            ValueError, match=r"none of the 2 images of class n02 in .* can be read"
        ):
            files.read_one(index)
    files.read_one(0)


def test_memory_error_is_no_broken_file(tmp_path, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr("minicst.data.images._decode", no_memory)
    files = _files(tmp_path, "a.png")
    with pytest.raises(MemoryError):
        files.read_one(0)
    assert files.unreadable == {}


def test_broken_file_is_opened_once(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"broken")
    _photo(20, 20).save(tmp_path / "b.png")
    files, tried = _files(tmp_path, "a.png", "b.png"), []
    monkeypatch.setattr(
        "minicst.data.images._decode",
        lambda name, *rest: tried.append(name) or _decode(name, *rest),
    )
    files.read([0, 0, 0])
    assert [name[-5:] for name in tried] == ["a.png", "b.png", "b.png", "b.png"]


def test_subset_keeps_to_itself(tmp_path):
    for key in range(4):
        _photo(30, 20, key).save(tmp_path / f"{key}.png")
    (tmp_path / "1.png").write_bytes(b"broken")
    files = _files(tmp_path, "0.png", "1.png", "2.png", "3.png", labels=[0, 0, 0, 0])
    part = files.subset(np.array([3, 1]))
    assert part.shape == (2, SIZE, SIZE, 3)
    assert len(part) == 2
    assert np.array_equal(part.read([0, 1])[1], _read(tmp_path, "3.png"))
    assert files.unreadable == {}
    assert np.array_equal(files.read_one(1), _read(tmp_path, "2.png"))


def test_many_threads_read_the_same(tmp_path):
    names = []
    for key in range(12):
        names.append(f"{key}.jpg")
        if key % 3:
            _photo(50, 40, key).save(tmp_path / names[-1])
        else:
            (tmp_path / names[-1]).write_bytes(b"broken")
    wanted = _files(tmp_path, *names).read(np.arange(12))
    files = _files(tmp_path, *names)
    got = [None] * 8

    def work(thread):
        got[thread] = files.read(np.arange(12))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(pixels, wanted) for pixels in got)
    assert len(files.unreadable) == 4


@pytest.mark.parametrize(
    ("paths", "labels", "size", "message"),
    [
        ([], np.zeros(0, np.int64), 8, "no image files"),
        (["a"], np.zeros(2, np.int64), 8, "1 paths but labels"),
        (["a"], np.zeros(1, np.int64), 0, "image_size must be at least 1 pixel, got 0"),
    ],
)
def test_bad_arguments(tmp_path, paths, labels, size, message):
    with pytest.raises(ValueError, match=message):
        ImageFiles(tmp_path, paths, labels, size)


def test_center_box_by_hand():
    # 224 of 256: the middle 7/8 of the short side.
    assert center_box(512, 512, 224) == (32.0, 32.0, 480.0, 480.0)
    left, top, right, bottom = center_box(500, 375, 224)
    scale = 256 / 375
    assert math.isclose((bottom - top) * scale, 224)
    # 341 x 256, and 58.5 rounds to the even 58.
    assert (left, right) == pytest.approx((58 * 500 / 341, 282 * 500 / 341), abs=1e-9)

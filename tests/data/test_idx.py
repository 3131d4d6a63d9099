"""The readers of MNIST and Fashion-MNIST against miniatures written by hand."""

import dataclasses
import gzip
import hashlib
import io
import os
import struct

import numpy as np
import pytest

import minicst.data.idx as module
from minicst.data import load_dataset

NAMES = ("mnist", "fashion-mnist")
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
SIZES = (7, 4)


def contents():
    """Return the bytes of the four files, and both halves as arrays."""
    rng = np.random.default_rng(5)
    files, halves = [], []
    for size in SIZES:
        images = rng.integers(0, 256, (size, 28, 28), np.uint8)
        labels = rng.integers(0, 10, size)
        pixels = b"".join(bytes(row.tolist()) for image in images for row in image)
        files.append(struct.pack(">BBBBIII", 0, 0, 8, 3, size, 28, 28) + pixels)
        files.append(struct.pack(">BBBBI", 0, 0, 8, 1, size) + bytes(labels.tolist()))
        halves.append((images, labels))
    return dict(zip(FILES, files, strict=True)), halves


CONTENTS, HALVES = contents()


def write(folder, *, packed=False, contents=CONTENTS):
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, content in contents.items():
        if packed:
            (folder / f"{file_name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file_name).write_bytes(content)
    return folder


def publish(monkeypatch, name, **changes):
    """Make the miniature's files the published ones."""
    digests = tuple(hashlib.sha256(content).hexdigest() for content in CONTENTS.values())
    changed = dataclasses.replace(module.COLLECTIONS[name], unpacked=digests, **changes)
    monkeypatch.setitem(module.COLLECTIONS, name, changed)


def check_content(data):
    for (images, labels), found_images, found_labels in zip(
        HALVES,
        (data.train_images, data.test_images),
        (data.train_labels, data.test_labels),
        strict=True,
    ):
        assert np.array_equal(found_images, images[..., None])
        assert np.array_equal(found_labels, labels)
        assert found_images.dtype == np.uint8
        assert found_labels.dtype == np.int64
        assert not found_images.flags.writeable


def one_line_error(match, data_dir, name="mnist", **arguments):
    with pytest.raises(ValueError, match=match) as caught:
        load_dataset(name, data_dir=data_dir, **{"verify": False, **arguments})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{name}: ")


# Reading


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", ["", "theirs"])
def test_images_and_labels_are_those_written(tmp_path, name, packed, inner):
    inner = inner and module.COLLECTIONS[name].inner
    write(tmp_path / inner, packed=packed)
    data = load_dataset(name, data_dir=tmp_path, verify=False)
    check_content(data)
    assert (data.name, data.input_shape, data.num_classes) == (name, (28, 28, 1), 10)
    assert data.source.endswith(
        f"from {tmp_path / inner}; not compared with the published checksums"
    )
    scaled = HALVES[0][0] / 255.0
    np.testing.assert_allclose(data.mean, [scaled.mean()], rtol=1e-12)
    np.testing.assert_allclose(data.std, [scaled.std()], rtol=1e-12)


def test_names_of_the_classes(tmp_path):
    write(tmp_path)
    mnist, fashion = (load_dataset(name, data_dir=tmp_path, verify=False) for name in NAMES)
    assert mnist.class_names == tuple("0123456789")
    assert fashion.class_names == load_dataset("fashion").class_names


def test_plain_and_packed_files_side_by_side(tmp_path):
    write(tmp_path, packed=True)
    for file_name in FILES[:2]:
        (tmp_path / file_name).write_bytes(CONTENTS[file_name])
        (tmp_path / f"{file_name}.gz").unlink()
    check_content(load_dataset("mnist", data_dir=tmp_path, verify=False))


def test_limit_is_the_first_images(tmp_path):
    data = load_dataset("mnist", data_dir=write(tmp_path), limit=3, verify=False)
    assert np.array_equal(data.train_images, HALVES[0][0][:3, ..., None])
    assert np.array_equal(data.test_images, HALVES[1][0][..., None])


# Checksums


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("level", [0, 9])
def test_checksums_are_those_without_compression(tmp_path, monkeypatch, name, level):
    publish(monkeypatch, name)
    for file_name, content in CONTENTS.items():
        (tmp_path / f"{file_name}.gz").write_bytes(gzip.compress(content, level))
    data = load_dataset(name, data_dir=tmp_path)
    check_content(data)
    assert data.source.endswith("; checksums are those of the published data")


@pytest.mark.parametrize("file_name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_other_bytes(tmp_path, monkeypatch, file_name, packed):
    publish(monkeypatch, "mnist")
    content = bytearray(CONTENTS[file_name])
    content[-1] = 255 - content[-1] if "images" in file_name else (content[-1] + 1) % 10
    write(tmp_path, packed=packed, contents={**CONTENTS, file_name: bytes(content)})
    match = f"{file_name} isn't the published file .*--no-verify"
    one_line_error(match, tmp_path, verify=True)
    load_dataset("mnist", data_dir=tmp_path, verify=False)


@pytest.mark.parametrize("name", NAMES)
def test_miniature_is_not_the_published_data(tmp_path, name):
    one_line_error("isn't the published file", write(tmp_path), name, verify=True)


@pytest.mark.parametrize("name", NAMES)
def test_checksums_are_of_their_length(name):
    collection = module.COLLECTIONS[name]
    assert [len(bytes.fromhex(digest)) for digest in collection.unpacked] == [32] * 4
    assert [len(bytes.fromhex(sum.removeprefix("md5:"))) for sum in collection.packed] == [16] * 4
    assert len({*collection.unpacked, *collection.packed}) == 8
    assert all(site.endswith("/") for site in collection.sites)


# Places


def test_shared_folder_and_the_cache_before_it(tmp_path, monkeypatch, cache):
    shared = write(tmp_path / "shared", packed=True)
    publish(monkeypatch, "fashion-mnist", shared=shared, sites=())
    data = load_dataset("fashion-mnist")
    check_content(data)
    assert f"from {shared};" in data.source
    write(cache / "fashion-mnist")
    assert f"from {cache}" in load_dataset("fashion-mnist").source


def test_download_and_reuse(monkeypatch, server, cache):
    packed = {file_name: gzip.compress(content) for file_name, content in CONTENTS.items()}
    for file_name, content in packed.items():
        server.put(f"good/{file_name}.gz", content)
    sums = tuple("md5:" + hashlib.md5(content).hexdigest() for content in packed.values())
    publish(monkeypatch, "mnist", packed=sums, sites=(server.url + "gone/", server.url + "good/"))
    data = load_dataset("mnist")
    check_content(data)
    assert sorted(os.listdir(cache / "mnist")) == sorted(f"{f}.gz" for f in FILES)
    assert data.source.endswith("; checksums are those of the published data")
    server.stop()
    check_content(load_dataset("mnist"))
    assert len(server.asked) == 8


def test_a_download_that_stopped_goes_on(monkeypatch, server, cache):
    packed = {file_name: gzip.compress(content) for file_name, content in CONTENTS.items()}
    sums = tuple("md5:" + hashlib.md5(content).hexdigest() for content in packed.values())
    publish(monkeypatch, "mnist", packed=sums, sites=(server.url,))
    for file_name, content in list(packed.items())[:2]:
        server.put(f"{file_name}.gz", content)
    one_line_error("no download to .*t10k-images", None)
    assert sorted(os.listdir(cache / "mnist")) == sorted(f"{f}.gz" for f in FILES[:2])
    for file_name, content in list(packed.items())[2:]:
        server.put(f"{file_name}.gz", content)
    check_content(load_dataset("mnist"))
    assert sum(path.startswith("/train") for path in server.asked) == 2


def test_folder_without_any(tmp_path):
    one_line_error("holds none of train-images-idx3-ubyte, ", tmp_path)
    one_line_error("holds none of", tmp_path / "nowhere")


@pytest.mark.parametrize("file_name", FILES)
def test_missing_file(tmp_path, file_name):
    write(tmp_path)
    (tmp_path / file_name).unlink()
    one_line_error(f"has no file {file_name}, plain or with .gz", tmp_path)


# Damage


def damaged(tmp_path, file_name, content, match, packed=False):
    write(tmp_path, packed=packed, contents={**CONTENTS, file_name: content})
    one_line_error(f"{file_name}.*{match}", tmp_path)


@pytest.mark.parametrize("file_name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_cut_short_at_any_length(tmp_path, file_name, packed):
    content = CONTENTS[file_name]
    for length in [*range(0, 17), len(content) // 2, len(content) - 1]:
        if length < len(content):
            match = "begins with|ends within its header|it is cut short"
            damaged(tmp_path, file_name, content[:length], match, packed)


@pytest.mark.parametrize("file_name", FILES)
def test_gzip_cut_short_or_flipped(tmp_path, file_name):
    write(tmp_path, packed=True)
    path = tmp_path / f"{file_name}.gz"
    content = path.read_bytes()
    for length in (3, 12, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        one_line_error(f"{file_name}.*(ended before|begins with|Error)", tmp_path)
    flipped = bytearray(content)
    flipped[-6] ^= 1  # in gzip's own checksum
    path.write_bytes(flipped)
    one_line_error(f"{file_name}.*CRC check failed", tmp_path)
    path.write_bytes(CONTENTS[file_name])
    one_line_error(f"{file_name}.*Not a gzipped file", tmp_path)


@pytest.mark.parametrize("file_name", FILES)
@pytest.mark.parametrize("packed", [False, True])
def test_it_goes_on(tmp_path, file_name, packed):
    damaged(tmp_path, file_name, CONTENTS[file_name] + b"\x00", "goes on after", packed)


@pytest.mark.parametrize("magic", ["00000d03", "00000801", "00000804", "01000803", "03080000"])
def test_another_magic_of_images(tmp_path, magic):
    content = bytes.fromhex(magic) + CONTENTS[FILES[0]][4:]
    damaged(tmp_path, FILES[0], content, "begins with .*, not 00 00 08 03")


def test_images_in_place_of_labels(tmp_path):
    damaged(tmp_path, FILES[1], CONTENTS[FILES[0]], "begins with 00 00 08 03, not 00 00 08 01")


@pytest.mark.parametrize(
    ("dims", "match"),
    [
        ((7, 28, 27), r"shape \(28, 27\), not \(28, 28\)"),
        ((7, 32, 28), r"shape \(32, 28\), not \(28, 28\)"),
        ((0, 28, 28), "header says 0 items"),
        ((60_001, 28, 28), "header says 60001 items; 1 to 60000"),
        ((2**32 - 1, 28, 28), "header says 4294967295 items"),
    ],
)
def test_another_shape_of_images(tmp_path, dims, match):
    content = struct.pack(">BBBBIII", 0, 0, 8, 3, *dims) + bytes(np.prod(dims) % 100_000)
    damaged(tmp_path, FILES[0], content, match)


def test_more_test_images_than_published(tmp_path):
    content = struct.pack(">BBBBI", 0, 0, 8, 1, 10_001) + bytes(10_001)
    damaged(tmp_path, FILES[3], content, "1 to 10000 are expected")


@pytest.mark.parametrize("file_name", FILES[1::2])
@pytest.mark.parametrize("label", [10, 255])
def test_label_above_nine(tmp_path, file_name, label):
    content = bytearray(CONTENTS[file_name])
    content[8 + 2] = label
    damaged(tmp_path, file_name, bytes(content), rf"label {label} in place 2 \(from 0\)")


def test_images_and_labels_of_different_numbers(tmp_path):
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 6) + bytes(6)
    write(tmp_path, contents={**CONTENTS, FILES[1]: labels})
    one_line_error("has 7 train images but 6 labels", tmp_path)


class Endless(io.RawIOBase):
    """Gives a header, then zeros for ever, and counts what is taken."""

    def __init__(self, header):
        self.header, self.taken = header, 0

    def read(self, size=-1):
        assert size >= 0, "everything at once"
        self.taken += size
        data, self.header = self.header[:size], self.header[size:]
        return data + bytes(size - len(data))


def test_no_more_is_read_than_the_header_may_say():
    stream = Endless(CONTENTS[FILES[0]][:16])
    with pytest.raises(ValueError, match="goes on after the 5488 values"):
        module.read_idx(stream, 60_000, (28, 28))
    assert stream.taken == 16 + 7 * 28 * 28 + 1


def test_a_file_that_unpacks_to_any_size(tmp_path):
    write(tmp_path, packed=True)
    bomb = gzip.compress(CONTENTS[FILES[1]][:8] + bytes(50_000_000))
    (tmp_path / f"{FILES[1]}.gz").write_bytes(bomb)
    one_line_error("goes on after the 7 values", tmp_path)

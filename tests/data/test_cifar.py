"""The readers of CIFAR-10 and CIFAR-100 against miniatures written value by value."""

import codecs
import dataclasses
import hashlib
import json
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

import minicst.data.cifar as module
from minicst.cli import main
from minicst.data import load_dataset, train_loader
from minicst.job import prepare
from minicst.settings import TrainSettings

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES = {"cifar10": TEN, "cifar100": tuple(f"class {number}" for number in range(100))}
SIZES = {"cifar10": (4, 3, 5, 1, 2, 6), "cifar100": (15, 6)}  # images in each file
KINDS = ("binary", "python")
BOTH = [(name, kind) for name in NAMES for kind in KINDS]


def version_of(name, kind):
    return getattr(module.LAYOUTS[name], kind)


def draw(name):
    """Return images (n, 32, 32, 3) and labels (n,) of each file."""
    rng = np.random.default_rng(3)
    return [
        (rng.integers(0, 256, (size, 32, 32, 3), np.uint8), rng.integers(0, len(NAMES[name]), size))
        for size in SIZES[name]
    ]


def planes(image):
    """Return the 3072 bytes of an image: red, green, blue, each row by row."""
    return b"".join(bytes(image[row, :, c].tolist()) for c in range(3) for row in range(32))


def write_binary(folder, name, written):
    version = version_of(name, "binary")
    for file_name, (images, labels) in zip(version.files, written, strict=False):
        content = bytearray()
        for image, label in zip(images, labels, strict=True):
            coarse = [] if name == "cifar10" else [(int(label) * 7 + 1) % 20]
            content += bytes([*coarse, int(label)]) + planes(image)
        (folder / file_name).write_bytes(content)
    (folder / version.names).write_text("\n".join(NAMES[name]) + "\n\n")  # as published


# The opcodes of a pickle, put together by hand as Python 2's pickle wrote them: protocol 2, text
# and array bytes as 8-bit strings, and the module names of the NumPy of that time.


def p_string(text):
    text = text if isinstance(text, bytes) else text.encode()
    return b"T" + struct.pack("<i", len(text)) + text  # BINSTRING


def p_int(value):
    return b"J" + struct.pack("<i", value)  # BININT


def p_list(items):
    return b"](" + b"".join(items) + b"e"


def p_array(rows, code="u1"):
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    reconstruct += b"cnumpy\nndarray\n" + b"K\x00\x85" + p_string("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + p_string(code) + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + p_string("|") + b"NNN" + p_int(-1) * 2 + b"K\x00tb"
    shape = p_int(rows.shape[0]) + p_int(rows.shape[1]) + b"\x86"
    return reconstruct + b"(K\x01" + shape + dtype + b"\x89" + p_string(rows.tobytes()) + b"tb"


def p_dict(**entries):
    return b"}(" + b"".join(p_string(key) + value for key, value in entries.items()) + b"u"


def p_file(content):
    return b"\x80\x02" + content + b"."


def batch(name, images, labels):
    rows = np.array([list(planes(image)) for image in images], np.uint8)
    key = "labels" if name == "cifar10" else "fine_labels"
    entries = {
        "data": p_array(rows),
        key: p_list([p_int(int(label)) for label in labels]),
        "batch_label": p_string("testing batch 1 of 1"),
        "filenames": p_list([p_string(f"{number}.png") for number in range(len(labels))]),
    }
    if name == "cifar100":
        entries["coarse_labels"] = p_list([p_int(int(label) % 20) for label in labels])
    return p_file(p_dict(**entries))


def meta(name):
    key = "label_names" if name == "cifar10" else "fine_label_names"
    return p_file(p_dict(**{key: p_list([p_string(n) for n in NAMES[name]]), "num_vis": p_int(9)}))


def write_python(folder, name, written):
    version = version_of(name, "python")
    for file_name, (images, labels) in zip(version.files, written, strict=False):
        (folder / file_name).write_bytes(batch(name, images, labels))
    (folder / version.names).write_bytes(meta(name))


def write_miniature(parent, name, kind="binary"):
    folder = parent / version_of(name, kind).folder
    folder.mkdir()
    written = draw(name)
    (write_binary if kind == "binary" else write_python)(folder, name, written)
    return folder, written


def publish(monkeypatch, name, kind, folder=None, archive=None, **changes):
    """Make a miniature's files or archive the published ones."""
    version = version_of(name, kind)
    if folder is not None:
        sums = {
            f: "md5:" + hashlib.md5((folder / f).read_bytes()).hexdigest() for f in version.sums
        }
        counts = iter(SIZES[name])
        train = {f: next(counts) for f in version.train}
        test = {f: next(counts) for f in version.test}
        changes |= {"sums": sums, "train": train, "test": test}
    if archive is not None:
        changes["checksum"] = "md5:" + hashlib.md5(archive.read_bytes()).hexdigest()
    changed = dataclasses.replace(version, **changes)
    layout = dataclasses.replace(module.LAYOUTS[name], **{kind: changed})
    monkeypatch.setitem(module.LAYOUTS, name, layout)


def pack(parent, name, kind, folder):
    """Pack a folder as the published archives are, with a readme, and take it away."""
    version = version_of(name, kind)
    (folder / "readme.html").write_text("<html>")
    with tarfile.open(parent / version.archive, "w:gz") as tar:
        tar.add(folder, version.folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return parent / version.archive


def load(name, data_dir, **arguments):
    return load_dataset(name, data_dir=data_dir, verify=False, **arguments)


@pytest.fixture(params=BOTH, ids="-".join)
def mini(request, tmp_path):
    name, kind = request.param
    return name, kind, *write_miniature(tmp_path, name, kind)


@pytest.fixture
def ten(tmp_path):
    return write_miniature(tmp_path, "cifar10")


@pytest.fixture
def ten_python(tmp_path):
    return write_miniature(tmp_path, "cifar10", "python")


def one_line_error(match, name="cifar10", **arguments):
    with pytest.raises(ValueError, match=match) as caught:
        load_dataset(name, **arguments)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith((f"{name}: ", f"limit is {arguments.get('limit')}"))


def check_content(name, data, written):
    *train, test = written
    assert np.array_equal(data.train_images, np.concatenate([images for images, _ in train]))
    assert np.array_equal(data.train_labels, np.concatenate([labels for _, labels in train]))
    assert np.array_equal(data.test_images, test[0])
    assert np.array_equal(data.test_labels, test[1])
    assert data.class_names == NAMES[name]


# Reading


def test_images_and_labels_are_those_written(mini):
    name, kind, folder, written = mini
    data = load(name, folder)
    check_content(name, data, written)
    assert data.name == name
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.train_labels.dtype == data.test_labels.dtype == np.int64
    assert data.train_images.flags.c_contiguous
    assert (data.input_shape, data.num_classes) == ((32, 32, 3), len(NAMES[name]))
    assert data.max_value == 255.0
    assert f"{module.LAYOUTS[name].title} (Krizhevsky 2009), {kind} version" in data.source
    assert data.source.endswith("; not compared with the published checksums")


def test_a_pixel_by_its_byte_in_the_file(ten):
    """Red, green and blue of row 2, column 7 lie at 1 + 2 * 32 + 7 and 1024, 2048 further."""
    folder, _ = ten
    data = load("cifar10", folder)
    content = (folder / "data_batch_3.bin").read_bytes()
    record = content[3073 * 4 : 3073 * 5]
    image = 4 + 3 + 4  # after the first two files
    assert data.train_labels[image] == record[0]
    at = 1 + 2 * 32 + 7
    assert data.train_images[image, 2, 7].tolist() == [record[at + 1024 * c] for c in range(3)]


def test_fine_label_is_the_second_byte(tmp_path):
    folder, _ = write_miniature(tmp_path, "cifar100")
    content = (folder / "train.bin").read_bytes()
    assert load("cifar100", folder).train_labels.tolist() == list(content[1::3074])


def test_statistics_are_those_of_the_training_images(mini, monkeypatch):
    import minicst.data.datasets as datasets

    monkeypatch.setattr(datasets, "_COUNTED_AT_ONCE", 4)  # 15 images: the last part is smaller
    name, _, folder, written = mini
    data = load(name, folder)
    scaled = np.concatenate([images for images, _ in written[:-1]]) / 255.0
    np.testing.assert_allclose(data.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_folder_or_its_parent_as_path_or_text_by_any_name(mini):
    name, _, folder, written = mini
    for place in (folder.parent, str(folder), str(folder.parent)):
        data = load(name, place)
        check_content(name, data, written)
        assert str(folder) in data.source
        assert "\n" not in data.source
    check_content(name, load(name, folder.rename(folder.parent / "mine")), written)


@pytest.mark.parametrize("name", NAMES)
def test_binary_is_preferred(tmp_path, name):
    write_miniature(tmp_path, name, "python")
    assert "python version" in load(name, tmp_path).source
    write_miniature(tmp_path, name, "binary")
    assert "binary version" in load(name, tmp_path).source


def test_arrays_are_read_only_and_no_views_of_the_files(mini):
    name, _, folder, written = mini
    data = load(name, folder)
    for array in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    for path in folder.iterdir():  # what happens to the files later doesn't matter
        path.write_bytes(bytes(3073))
    check_content(name, data, written)


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 12, 15])
def test_limit_is_the_first_images_in_the_order_of_the_files(mini, limit):
    name, _, folder, written = mini
    data = load(name, folder, limit=limit)
    images = np.concatenate([images for images, _ in written[:-1]])[:limit]
    labels = np.concatenate([labels for _, labels in written[:-1]])[:limit]
    assert np.array_equal(data.train_images, images)
    assert np.array_equal(data.train_labels, labels)
    assert np.array_equal(data.test_images, written[-1][0])
    np.testing.assert_allclose(data.mean, (images / 255.0).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, (images / 255.0).std(axis=(0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("limit", [1, 4, 5, 15, 16, None])
def test_the_reader_itself_stops_at_the_limit(mini, limit):
    name, _, folder, written = mini
    halves, *_ = module.open_cifar(name, folder, limit, verify=False)
    images = np.concatenate([images for images, _ in written[:-1]])[:limit]
    assert np.array_equal(halves[0][0], images)
    assert len(halves[0][1]) == len(images)
    assert len(halves[1][1]) == 6


@pytest.mark.parametrize(("limit", "message"), [(16, "cifar10 has 15 training"), (0, "at least 1")])
def test_limit_out_of_range(ten, limit, message):
    one_line_error(message, data_dir=ten[0], limit=limit, verify=False)


def test_held_out_images_are_drawn_from_all_whatever_the_limit(mini):
    name, kind, folder, written = mini
    labels = np.arange(15) % 3
    written = [(images, labels[: len(images)]) for images, _ in written]
    (write_binary if kind == "binary" else write_python)(folder, name, written)
    whole, part = (load(name, folder, limit=limit, validation=0.4) for limit in (None, 2))
    train = [image.tobytes() for images, _ in written[:-1] for image in images]
    held_out = [train.index(image.tobytes()) for image in whole.test_images]
    left = [train.index(image.tobytes()) for image in whole.train_images]
    assert sorted(held_out + left) == list(range(15))
    assert max(held_out) > 4
    assert whole.evaluated_on == part.evaluated_on == "validation"
    assert np.array_equal(part.test_images, whole.test_images)
    assert np.array_equal(part.train_images, whole.train_images[:2])


def test_no_more_is_read_than_asked_for(ten):
    folder, written = ten
    content = bytearray((folder / "data_batch_2.bin").read_bytes())
    content[0] = 10
    (folder / "data_batch_2.bin").write_bytes(content)
    data = load("cifar10", folder, limit=4)
    assert np.array_equal(data.train_images, written[0][0])
    match = r"data_batch_2\.bin has label 10 in record 0"
    one_line_error(match, data_dir=folder, limit=5, verify=False)


def test_pad_to(ten):
    plain = load("cifar10", ten[0])
    assert np.array_equal(load("cifar10", ten[0], pad_to=32).test_images, plain.test_images)
    padded = load("cifar10", ten[0], pad_to=40)
    assert np.array_equal(padded.test_images[:, 4:36, 4:36], plain.test_images)
    assert padded.mean == plain.mean


def test_loader_gives_batches(ten):
    loader = train_loader(load("cifar10", ten[0]), 4, augment="crop-flip")
    shapes = [batch.images.shape for batch in loader.epoch(0)]
    assert shapes == [(4, 32, 32, 3)] * 3


# Verification


def test_published_sizes():
    bytes_of = {}
    for layout in module.LAYOUTS.values():
        for file_name, count in {**layout.binary.train, **layout.binary.test}.items():
            bytes_of[file_name] = count * layout.record_bytes
    assert bytes_of.pop("train.bin") == 153_700_000
    assert bytes_of.pop("test.bin") == 30_740_000
    assert len(bytes_of) == 6
    assert set(bytes_of.values()) == {30_730_000}


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_every_file_has_a_checksum(name, kind):
    version = version_of(name, kind)
    wanted = set(version.files) - ({version.names} if kind == "binary" else set())
    assert set(version.sums) == wanted
    digits = {"md5": 32, "sha1": 40}
    for checksum in (version.checksum, *version.sums.values()):
        algorithm, value = checksum.split(":")
        assert len(bytes.fromhex(value)) * 2 == digits[algorithm]


def test_published_files(mini, monkeypatch):
    name, kind, folder, written = mini
    publish(monkeypatch, name, kind, folder)
    data = load_dataset(name, data_dir=folder)
    check_content(name, data, written)
    assert data.source.endswith("; checksums are those of the published data")


@pytest.mark.parametrize("name", NAMES)
def test_binary_copy_of_the_published_size_is_told(tmp_path, monkeypatch, name):
    folder, _ = write_miniature(tmp_path, name)
    publish(monkeypatch, name, "binary", folder)
    path = folder / version_of(name, "binary").files[0]
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    source = load_dataset(name, data_dir=folder).source
    assert source.endswith(f"; not the published bytes: the checksums of {path.name} differ")


def test_binary_of_another_size(ten):
    match = r"data_batch_1\.bin has 12292 bytes where .* 30730000; .*--no-verify"
    one_line_error(match, data_dir=ten[0])


def test_real_size_without_its_bytes(tmp_path):
    """The six files at their published size, mostly holes: sizes are right, checksums aren't."""
    folder, written = write_miniature(tmp_path, "cifar10")
    for file_name in version_of("cifar10", "binary").sums:
        os.truncate(folder / file_name, 30_730_000)
    data = load_dataset("cifar10", data_dir=folder, limit=10_001)
    assert np.array_equal(data.train_images[:4], written[0][0])
    assert np.array_equal(data.train_images[10_000], written[1][0][0])
    assert data.test_images.shape == (10_000, 32, 32, 3)
    assert "not the published bytes: the checksums of data_batch_1.bin, data_b" in data.source


@pytest.mark.parametrize("name", NAMES)
def test_python_with_another_checksum(tmp_path, monkeypatch, name):
    folder, _ = write_miniature(tmp_path, name, "python")
    one_line_error("isn't the published file .*--no-verify", name, data_dir=folder)
    publish(monkeypatch, name, "python", folder)
    for file_name in version_of(name, "python").files:
        content = (folder / file_name).read_bytes()
        (folder / file_name).write_bytes(content + b"\x00")
        one_line_error(f"{file_name} isn't the published file", name, data_dir=folder)
        (folder / file_name).write_bytes(content)
    load_dataset(name, data_dir=folder)


# Archives


@pytest.mark.parametrize("given", ["folder", "archive"])
def test_archive_is_unpacked_once(mini, monkeypatch, given):
    name, kind, folder, written = mini
    parent = folder.parent
    publish(monkeypatch, name, kind, folder)
    archive = pack(parent, name, kind, folder)
    place = archive if given == "archive" else parent
    one_line_error("isn't the published archive .*--no-verify", name, data_dir=place)
    assert os.listdir(parent) == [archive.name]

    publish(monkeypatch, name, kind, archive=archive)
    check_content(name, load_dataset(name, data_dir=place), written)
    assert sorted(os.listdir(parent)) == sorted([archive.name, folder.name])
    assert set(os.listdir(folder)) == set(version_of(name, kind).files)
    monkeypatch.setattr(module, "unpack", None)
    check_content(name, load_dataset(name, data_dir=place), written)


def test_archive_without_verification(mini):
    name, kind, folder, written = mini
    archive = pack(folder.parent, name, kind, folder)
    data = load(name, archive)
    check_content(name, data, written)
    assert data.source.endswith("not compared with the published checksums")


def test_another_file_as_archive(tmp_path):
    (tmp_path / "file").write_text("")
    one_line_error("is none of the archives", data_dir=tmp_path / "file")


def test_hostile_archive_leaves_nothing(ten, tmp_path):
    archive = pack(tmp_path, "cifar10", "binary", ten[0])
    with tarfile.open(tmp_path / "evil", "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-bin/../../evil")
        tar.addfile(member)
    (tmp_path / "evil").rename(archive)
    one_line_error("its path leaves the folder", data_dir=tmp_path, verify=False)
    assert os.listdir(tmp_path) == [archive.name]


def test_a_member_above_its_published_size(ten, tmp_path):
    with (ten[0] / "test_batch.bin").open("ab") as file:
        file.truncate(40_000_000)
    archive = pack(tmp_path, "cifar10", "binary", ten[0])
    match = "test_batch.bin': it has 40000000 bytes"
    one_line_error(match, data_dir=tmp_path, verify=False)
    assert os.listdir(tmp_path) == [archive.name]


# Download


def test_download_unpack_and_reuse(tmp_path, monkeypatch, server, cache):
    name = "cifar100"
    folder, written = write_miniature(tmp_path, name)
    publish(monkeypatch, name, "binary", folder)
    archive = pack(tmp_path, name, "binary", folder)
    publish(monkeypatch, name, "binary", archive=archive)
    server.put("good/cifar-100-binary.tar.gz", archive.read_bytes())
    monkeypatch.setattr(module, "_SITES", (server.url + "gone/", server.url + "good/"))
    data = load_dataset(name)
    check_content(name, data, written)
    assert data.source.endswith("checksums are those of the published data")
    assert os.listdir(cache) == [folder.name]
    server.stop()
    check_content(name, load_dataset(name), written)
    assert len(server.asked) == 2


def test_download_of_other_bytes(tmp_path, monkeypatch, server, cache):
    server.put("cifar-10-binary.tar.gz", b"something else")
    monkeypatch.setattr(module, "_SITES", (server.url,))
    one_line_error(r"no download to .*md5:c32a1d4a.*--data-dir", verify=False)
    assert os.listdir(cache) == []


# Damaged files


def test_folder_that_is_not_there(tmp_path):
    one_line_error("there is no folder .*nowhere", data_dir=tmp_path / "nowhere")
    one_line_error("holds neither cifar-10-batches-bin nor", data_dir=tmp_path)
    assert os.listdir(tmp_path) == []


def test_missing_file(mini):
    name, kind, folder, _ = mini
    version = version_of(name, kind)
    for file_name in version.files:
        content = (folder / file_name).read_bytes()
        (folder / file_name).unlink()
        match = f"has no file {file_name}; .*{kind} version .{version.archive}"
        one_line_error(match, name, data_dir=folder, verify=False)
        (folder / file_name).mkdir()
        one_line_error(match, name, data_dir=folder, limit=1)
        (folder / file_name).rmdir()
        (folder / file_name).write_bytes(content)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 3073 * 2 - 1])
@pytest.mark.parametrize("file_name", ["data_batch_4.bin", "test_batch.bin"])
def test_truncated_binary_file(ten, file_name, size):
    (ten[0] / file_name).write_bytes(bytes(size))
    # Also where the limit needs none of the file: a damaged copy shows at once.
    for limit in (None, 1):
        match = f"{file_name} has {size} bytes, not a whole number"
        one_line_error(match, data_dir=ten[0], limit=limit, verify=False)


@pytest.mark.parametrize("name", NAMES)
def test_truncated_python_file_at_any_length(tmp_path, name):
    folder, _ = write_miniature(tmp_path, name, "python")
    for file_name in version_of(name, "python").files[-2:]:
        content = (folder / file_name).read_bytes()
        for length in [*range(0, min(len(content), 250), 7), len(content) // 2, len(content) - 1]:
            (folder / file_name).write_bytes(content[:length])
            match = f"{file_name} (is damaged or cut short|isn't a batch)"
            one_line_error(match, name, data_dir=folder, verify=False)
        (folder / file_name).write_bytes(content)


@pytest.mark.parametrize("label", [10, 255])
@pytest.mark.parametrize(("file_name", "record"), [("data_batch_3.bin", 4), ("test_batch.bin", 0)])
def test_label_above_nine(ten, file_name, record, label):
    path = ten[0] / file_name
    content = bytearray(path.read_bytes())
    content[3073 * record] = label
    path.write_bytes(content)
    match = f"{file_name} has label {label} in record {record} "
    one_line_error(match, data_dir=ten[0], verify=False)


@pytest.mark.parametrize("text", ["", "cat\ndog\n", "\n".join([*TEN, "person"])])
def test_class_names_must_be_ten(ten, text):
    (ten[0] / "batches.meta.txt").write_text(text)
    match = r"class names where 10 are needed"
    one_line_error(match, data_dir=ten[0], verify=False)


def test_names_that_are_no_text(ten):
    (ten[0] / "batches.meta.txt").write_bytes(bytes(range(128, 256)))
    match = r"class names where 10 are needed"
    one_line_error(match, data_dir=ten[0], verify=False)


# Pickles

ROWS = np.zeros((2, 3072), np.uint8)
SHAPE = p_int(2) + p_int(3072)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("keys", [str, str.encode])
@pytest.mark.parametrize("order", "CF")
def test_pickles_that_python_3_writes(ten_python, protocol, old_names, keys, order):
    folder, written = ten_python
    images, labels = written[-1]
    rows = np.asarray([list(planes(image)) for image in images], np.uint8, order=order)
    content = {keys("data"): rows, keys("labels"): labels.tolist()}
    data = pickle.dumps(content, protocol=protocol)
    if old_names and protocol < 4:  # there names have no length in front
        assert b"numpy._core" in data
        data = data.replace(b"numpy._core", b"numpy.core")
    (folder / "test_batch").write_bytes(data)
    check_content("cifar10", load("cifar10", folder), written)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"labels": p_list([])}, "1 images but 0 labels"),
        ({"data": p_string("text")}, "'data' isn't a uint8 array"),
        ({"data": p_array(np.zeros((1, 3071), np.uint8))}, r"shape \(1, 3071\)"),
        ({"data": p_array(np.zeros((0, 3072), np.uint8))}, r"shape \(0, 3072\)"),
        ({"data": p_array(np.zeros((1, 3072), np.uint8), "f8")}, "only uint8"),
        ({"data": p_array(np.zeros((1, 3072), np.uint8), "O")}, "only uint8"),
        ({"labels": p_list([p_int(1), p_int(2)])}, "1 images but 2 labels"),
        ({"labels": p_list([p_string("1")])}, "'labels' isn't a list of whole numbers"),
        ({"labels": p_int(1)}, "'labels' isn't a list of whole numbers"),
        ({"labels": p_list([b"\x8a\x09" + bytes(8) + b"\x01"])}, "a number that is no label"),
        ({"labels": p_list([p_int(-1)])}, "a number that is no label"),
        ({"labels": p_list([p_int(10)])}, "has label 10 in record 0"),
    ],
)
def test_batches_of_another_shape(ten_python, entries, match):
    good = {"data": p_array(np.zeros((1, 3072), np.uint8)), "labels": p_list([p_int(1)])}
    (ten_python[0] / "test_batch").write_bytes(p_file(p_dict(**{**good, **entries})))
    one_line_error(match, data_dir=ten_python[0], verify=False)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (p_list([]), "a list, not a dict"),
        (p_dict(), "'label_names' isn't a list of names"),
        (p_dict(label_names=p_list([p_int(1)])), "'label_names' isn't a list of names"),
        (p_dict(label_names=p_list([p_string("cat")])), "1 class names where 10"),
    ],
)
def test_names_of_another_shape(ten_python, content, match):
    (ten_python[0] / "batches.meta").write_bytes(p_file(content))
    one_line_error(match, data_dir=ten_python[0], verify=False)


class Runs:
    """Its pickle calls a function when it is read."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile_pickles(marker):
    command = f"touch {marker}"
    write = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    for protocol in (0, 1, 2, 3, 4, 5):
        for function, argument in ((os.system, command), (eval, write), (exec, write)):
            yield pickle.dumps({"data": Runs(function, argument)}, protocol=protocol)
    yield p_file(b"cos\nsystem\n" + p_string(command) + b"\x85R")
    yield p_file(b"(" + p_string(command) + b"ios\nsystem\n")  # INST
    yield p_file(b"(cos\nsystem\n" + p_string(command) + b"o")  # OBJ
    yield p_file(b"cpathlib\nPath\n" + p_string(str(marker)) + b"\x85\x81")  # NEWOBJ
    # By an attribute of what is admitted.
    for path in ("dtype.__class__", "ndarray.tofile", "load", "f2py", "testing"):
        yield p_file(b"cnumpy\n" + path.encode() + b"\n" + p_string(str(marker)) + b"\x85R")
    yield pickle.dumps(Runs(np.load, str(marker)))
    yield p_file(b"c_codecs\nencode\n" + p_string("x") + p_string("rot13") + b"\x86R")
    yield p_file(b"c_codecs\nencode\n}" + p_string("call") + p_string("x") + b"sb")  # BUILD
    yield p_file(b"c_codecs\nencode\nN}" + p_string("__doc__") + p_string("x") + b"s\x86b")
    yield p_file(b"cnumpy\nndarray\n" + p_int(1 << 30) + b"\x85R")
    yield p_file(b"Pname\n")  # persistent object
    yield p_file(b"\x82\x01")  # extension registry
    yield pickle.dumps({"data": np.zeros((1, 3072))}, protocol=2)
    yield pickle.dumps({"data": np.array([Runs(os.system, command)], dtype=object)}, protocol=2)


def test_hostile_pickles_run_nothing(ten_python, tmp_path):
    folder, written = ten_python
    marker = tmp_path / "it ran".replace(" ", "_")
    count = 0
    for content in hostile_pickles(marker):
        for file_name in ("test_batch", "batches.meta", "data_batch_1"):
            good = (folder / file_name).read_bytes()
            (folder / file_name).write_bytes(content)
            match = f"{file_name} (isn't a batch of CIFAR: it |is damaged)"
            one_line_error(match, data_dir=folder, verify=False)
            assert sorted(os.listdir(tmp_path)) == [folder.name]
            (folder / file_name).write_bytes(good)
        count += 1
    assert count > 30
    check_content("cifar10", load("cifar10", folder), written)  # no stand-in was changed


def test_the_marker_would_have_been_left(tmp_path):
    """The same pickles do run with an ordinary reader."""
    for number, content in enumerate(hostile_pickles(tmp_path / "marker")):
        if number < 22:
            pickle.loads(content)
            assert (tmp_path / "marker").exists() == (number != 21)
            (tmp_path / "marker").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "name",
    ["numpy.core.multiarray\n_reconstruct", "numpy\nndarray", "numpy\ndtype", "_codecs\nencode"],
)
@pytest.mark.parametrize(
    "state",
    [
        b"}" + p_string("_call") + b"Ns",
        b"N}" + p_string("_call") + b"Ns\x86",
        b"N}" + p_string("__defaults__") + b")s\x86",
    ],
)
def test_what_is_admitted_cannot_be_changed(ten_python, name, state):
    folder, written = ten_python
    (folder / "data_batch_1").write_bytes(p_file(b"c" + name.encode() + b"\n" + state + b"b"))
    good = (folder / "test_batch").read_bytes()
    one_line_error("it tries to change a function", data_dir=folder, verify=False)
    write_python(folder, "cifar10", written)
    assert (folder / "test_batch").read_bytes() == good
    check_content("cifar10", load("cifar10", folder), written)


def test_only_latin1_is_encoded(ten_python):
    content = {"data": Runs(codecs.encode, "text", "rot13"), "labels": [1]}
    (ten_python[0] / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    match = "asks for the encoding 'rot13', where only latin1"
    one_line_error(match, data_dir=ten_python[0], verify=False)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (p_array(ROWS).replace(SHAPE, p_int(3) + p_int(3072)), "test_batch is damaged .*6144"),
        (p_array(ROWS).replace(SHAPE, p_int(-1) + p_int(3072)), r"damaged .*shape \(-1, 3072\)"),
        (b"cnumpy\nndarray\n" + p_int(2) + b"\x85R", "makes an array in another way"),
        (
            p_array(ROWS).split(b"(K\x01")[0]
            + b"(K\x01"
            + SHAPE
            + b"\x86N\x89"
            + p_string(ROWS.tobytes())
            + b"tb",
            "of another type than uint8",
        ),
    ],
    ids=["length", "negative", "call", "dtype"],
)
def test_arrays_that_are_not_as_numpy_writes_them(ten_python, data, match):
    content = p_dict(data=data, labels=p_list([p_int(1)] * 2))
    (ten_python[0] / "test_batch").write_bytes(p_file(content))
    one_line_error(match, data_dir=ten_python[0], verify=False)


def test_the_refused_name_is_told(ten_python):
    (ten_python[0] / "test_batch").write_bytes(pickle.dumps(Runs(os.system, "true")))
    match = "it asks for posix.system; nothing of it was run"
    one_line_error(match, data_dir=ten_python[0], verify=False)


# Settings and command line


def test_settings_survive_json(tmp_path):
    settings = TrainSettings(data="cifar10", data_dir=tmp_path, limit=512)
    data = json.loads(json.dumps(settings.as_json()))
    assert TrainSettings.from_json(data) == settings
    for key in ("data_dir", "limit"):  # a run from before these settings
        del data[key]
    assert TrainSettings.from_json(data) == dataclasses.replace(settings, data_dir=None, limit=None)


def test_prepare_hands_folder_and_limit_on(ten, monkeypatch):
    publish(monkeypatch, "cifar10", "binary", ten[0])
    settings = TrainSettings(data="cifar10", data_dir=ten[0], limit=7, batch_size=3)
    job = prepare(dataclasses.replace(settings, network="vgg-tiny", width=0.25))
    assert len(job.dataset.train_labels) == 7
    assert len(job.loader) == 2


def test_train_from_the_command_line(ten, tmp_path, capsys, monkeypatch):
    arguments = ["train", "--data", "cifar10", "--network", "vgg-tiny", "--width", "0.25"]
    arguments += ["--epochs", "1", "--batch-size", "4", "--dense-probes", "0", "--threads", "1"]
    arguments += ["--data-dir", str(ten[0].parent), "--limit", "9"]
    assert main([*arguments, "--out", str(tmp_path / "no")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minicst: error: cifar10: ")
    assert "where the published file has 30730000" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "no").exists()

    publish(monkeypatch, "cifar10", "binary", ten[0])
    out = tmp_path / "run"
    assert main([*arguments, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["data"] == "cifar10"
    assert summary["test_images"] == 6
    assert TrainSettings.from_json(json.loads((out / "settings.json").read_text())).limit == 9

"""Unpacking: right archives, damaged ones and ones made to do harm."""

import gzip
import io
import os
import tarfile

import numpy as np
import pytest

from minicst.data import archive as module
from minicst.data.archive import unpack

CONTENT = {"a.bin": np.random.default_rng(0).bytes(30_000), "names.txt": b"one\ntwo\n"}
LIMITS = {"a.bin": 30_000, "names.txt": 100}


def regular(name, data, **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


GOOD = [regular(f"in/{name}", data) for name, data in CONTENT.items()]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def write(place, members):
    path = place / "x.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


def run(path, limits=LIMITS):
    return unpack("some", path, limits, "in", beside=path.parent)


def refused(path, match, limits=LIMITS):
    before = snapshot(path.parent.parent)
    with pytest.raises(ValueError, match=match) as caught:
        run(path, limits)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("some: ")
    assert str(path) in str(caught.value)
    assert snapshot(path.parent.parent) == before  # neither here nor a folder above


def snapshot(folder):
    return sorted(
        (str(path), path.is_symlink(), path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    )


def test_files_asked_for_are_written(place):
    folder_member = special("in", tarfile.DIRTYPE)
    extra = [regular("in/readme.html", b"text"), regular("elsewhere/a.bin", b"no")]
    path = write(place, [folder_member, *extra, *GOOD])
    assert run(path) == place / "in"
    assert {p.name: p.read_bytes() for p in (place / "in").iterdir()} == CONTENT
    assert sorted(os.listdir(place)) == ["in", "x.tar.gz"]


def test_modes_and_owners_of_the_archive_are_ignored(place):
    path = write(place, [regular("in/a.bin", b"x", mode=0o7777, uid=12345), GOOD[1]])
    run(path)
    status = (place / "in" / "a.bin").stat()
    assert status.st_mode & 0o7111 == 0
    assert status.st_uid == os.getuid()
    assert (place / "in").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("hostile", "match"),
    [
        (regular("../evil", b"x"), r"'\.\./evil': its path leaves"),
        (regular("in/../../evil", b"x"), "its path leaves"),
        (regular("/minicst-evil", b"x"), "its path leaves"),
        (regular("in\\..\\evil", b"x"), "its path leaves"),
        (regular("c:evil", b"x"), "its path leaves"),
        (special("../folder", tarfile.DIRTYPE), "its path leaves"),
        (special("in/a.bin", tarfile.SYMTYPE, "/etc/passwd"), "link or a device"),
        (special("in", tarfile.SYMTYPE, ".."), "link or a device"),
        (special("in/other", tarfile.LNKTYPE, "in/names.txt"), "link or a device"),
        (special("in/a.bin", tarfile.FIFOTYPE), "link or a device"),
        (special("in/a.bin", tarfile.CHRTYPE), "link or a device"),
        (regular("in/a.bin", bytes(30_001)), "has 30001 bytes, at most 30000"),
        (regular("in/names.txt", bytes(101)), "has 101 bytes, at most 100"),
        (regular("in/other", bytes((1 << 20) + 1)), "has 1048577 bytes"),
    ],
)
def test_hostile_members(place, hostile, match):
    for members in ([hostile, *GOOD], [*GOOD, hostile]):
        if hostile[0].name == "in/a.bin" and members[0] is GOOD[0]:
            continue  # there it is a second one, below
        refused(write(place, members), match)
    assert not os.path.exists("/minicst-evil")


def test_a_file_twice(place):
    refused(write(place, [*GOOD, GOOD[0]]), "it is there twice")


@pytest.mark.parametrize("name", CONTENT)
def test_a_missing_file(place, name):
    refused(write(place, [m for m in GOOD if m[0].name != f"in/{name}"]), f"has no in/{name}")


def test_cut_short_at_any_length(place):
    path = write(place, GOOD)
    content = path.read_bytes()
    for length in [0, 1, 5, 10, 50, *range(100, len(content), 1500), len(content) - 1]:
        path.write_bytes(content[:length])
        refused(path, "cut short")
    path.write_bytes(content)
    run(path)


def test_tar_cut_inside_an_intact_gzip(place):
    path = write(place, GOOD)
    tar = gzip.decompress(path.read_bytes())
    for length in (512 + 100, 512 + 29_999):
        path.write_bytes(gzip.compress(tar[:length]))
        refused(path, "cut short")


@pytest.mark.parametrize(
    "content",
    [b"text", gzip.compress(b"text" * 1000), np.random.default_rng(1).bytes(2000)],
    ids=["text", "gzip", "noise"],
)
def test_no_archive(place, content):
    (place / "x.tar.gz").write_bytes(content)
    refused(place / "x.tar.gz", "damaged or cut short|cut short or another")


def test_flipped_bytes(place):
    path = write(place, GOOD)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    refused(path, "damaged or cut short")


def test_headers_that_unpack_to_any_size(place, monkeypatch):
    """A header may be of any length, and no file's limit counts its bytes."""
    monkeypatch.setattr(module, "_SLACK", 1 << 20)
    member = tarfile.TarInfo("in/a.bin")
    member.pax_headers = {"comment": "x" * (4 << 20)}
    path = place / "x.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    assert path.stat().st_size < 20_000
    refused(path, "unpacks to more than 1078676 bytes")


@pytest.mark.parametrize("size", [-1, -512, -(1 << 40), 1 << 62])
def test_sizes_that_lead_backwards_or_beyond(place, size):
    path = write(place, GOOD)
    tar = bytearray(gzip.decompress(path.read_bytes()))
    tar[124:136] = (size % (1 << 96)).to_bytes(12, "big")  # the binary form of a size
    tar[124] |= 0x80
    tar[148:156] = b" " * 8
    tar[148:156] = b"%06o\0 " % sum(tar[:512])
    path.write_bytes(gzip.compress(bytes(tar)))
    refused(path, "damaged or cut short|cut short or another|at most 30000")


def test_sparse_files_count_in_full(place):
    member = tarfile.TarInfo("in/a.bin")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    member.pax_headers |= {"GNU.sparse.name": "in/a.bin", "GNU.sparse.realsize": str(1 << 40)}
    member.size = 512
    path = place / "x.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))
    refused(path, "has 1099511627776 bytes, at most 30000")


def test_a_folder_that_is_there_stays(place):
    path = write(place, GOOD)
    (place / "in").mkdir()
    (place / "in" / "mine").touch()
    assert run(path) == place / "in"
    assert sorted(os.listdir(place)) == ["in", "x.tar.gz"]
    assert os.listdir(place / "in") == ["mine"]


def test_an_interrupt_leaves_nothing(place, monkeypatch):
    path = write(place, GOOD)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    assert os.listdir(place) == ["x.tar.gz"]


@pytest.mark.parametrize("function", ["tempfile.mkdtemp", "shutil.copyfileobj"])
def test_no_room_or_no_right_to_write(place, monkeypatch, function):
    path = write(place, GOOD)

    def refuse(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(function, refuse)
    refused(path, "No space left on device")

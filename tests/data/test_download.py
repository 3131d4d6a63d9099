"""Downloads against a server on the loopback: what is fetched, refused, kept and reused."""

import hashlib
import io
import os
import sys

import pooch
import pytest

from minicst.data.download import cache_folder, check_sum, fetch

BODY = bytes(range(256)) * 700  # more than one piece
SUM = "md5:" + hashlib.md5(BODY).hexdigest()
OTHER = "sha256:" + hashlib.sha256(b"other").hexdigest()


class Bar:
    def __init__(self):
        self.total, self.done, self.closed = 0, 0, 0

    def update(self, amount, /):
        self.done += amount

    def reset(self):
        self.done = 0

    def close(self):
        self.closed += 1


def failing(*arguments, match):
    with pytest.raises(ValueError, match=match) as caught:
        fetch(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cache_folder_is_the_variable_or_the_users(cache, monkeypatch):
    assert cache_folder() == cache
    for value in ("", None):
        monkeypatch.setenv("MINICST_DATA", "") if value == "" else monkeypatch.delenv(
            "MINICST_DATA"
        )
        assert cache_folder() == pooch.os_cache("minicst")


def test_checksums(tmp_path):
    (tmp_path / "file").write_bytes(BODY)
    assert check_sum(tmp_path / "file", SUM)
    assert check_sum(tmp_path / "file", "sha256:" + hashlib.sha256(BODY).hexdigest())
    assert check_sum(tmp_path / "file", "sha1:" + hashlib.sha1(BODY).hexdigest())
    assert not check_sum(tmp_path / "file", OTHER)


def test_file_is_fetched_into_a_new_folder(server, tmp_path, capfd):
    url = server.put("a/file.gz", BODY)
    folder = tmp_path / "new" / "folder"
    assert fetch("x", (url,), SUM, folder) == folder / "file.gz"
    assert (folder / "file.gz").read_bytes() == BODY
    assert os.listdir(folder) == ["file.gz"]
    assert capfd.readouterr() == ("", "")  # stderr is no terminal


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    url = server.put("file", BODY)
    fetch("x", (url,), SUM, tmp_path)
    server.stop()
    tmp_path.chmod(0o500)
    assert fetch("x", (url,), SUM, tmp_path).read_bytes() == BODY
    tmp_path.chmod(0o700)
    assert server.asked == ["/file"]


def test_what_is_there_with_another_checksum_is_fetched_again(server, tmp_path):
    (tmp_path / "file").write_bytes(BODY[:100])
    assert fetch("x", (server.put("file", BODY),), SUM, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    "bad",
    [
        {"body": b"", "status": 404},
        {"body": b"", "status": 503},
        {"body": BODY[:-1] + b"!"},
        {"body": BODY[:5000], "length": len(BODY)},  # the connection ends early
        {"body": BODY[:5000]},
    ],
    ids=["missing", "down", "wrong", "interrupted", "short"],
)
def test_a_bad_mirror_then_a_good_one_then_none(server, tmp_path, bad):
    bad_url, good_url = server.put("bad/file", **bad), server.put("good/file", BODY)
    message = failing("some", (bad_url,), SUM, tmp_path, match="^some: no download to")
    for part in (bad_url, SUM, str(tmp_path / "file"), "--data-dir"):
        assert part in message
    assert os.listdir(tmp_path) == []
    assert fetch("some", (bad_url, good_url), SUM, tmp_path).read_bytes() == BODY
    assert server.asked == ["/bad/file", "/bad/file", "/good/file"]
    assert os.listdir(tmp_path) == ["file"]


def test_reasons_of_all_mirrors_are_named(server, tmp_path):
    urls = (server.put("a/file", b"", status=404), server.put("b/file", BODY[:9]))
    message = failing("x", urls, SUM, tmp_path, match="404 Client Error")
    assert "does not match the known hash" in message


def test_nobody_listens(server, tmp_path):
    server.stop()
    message = failing("x", (server.url + "file",), SUM, tmp_path, match="Connection refused")
    assert "HTTPConnection" not in message  # the reason, without what it is wrapped in
    assert os.listdir(tmp_path) == []


def test_a_bad_download_leaves_what_was_there(server, tmp_path):
    (tmp_path / "file").write_bytes(b"older")
    failing("x", (server.put("file", BODY[1:]),), SUM, tmp_path, match="no download")
    assert (tmp_path / "file").read_bytes() == b"older"


def test_no_folder_can_be_made(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    place = tmp_path / "file" / "cache"
    failing("x", (server.put("f", BODY),), SUM, place, match=r"x: can't write .*MINICST_DATA")


def test_read_only_cache_is_told(server, tmp_path, monkeypatch):
    # A superuser may write to any folder: the refusal is made here.
    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    (tmp_path / "other").touch()
    failing("x", (server.put("f", BODY),), SUM, tmp_path, match=r"can't write .*MINICST_DATA")
    assert server.asked == []
    assert os.listdir(tmp_path) == ["other"]


def test_a_bar_of_ones_own(server, tmp_path):
    bar = Bar()
    fetch("x", (server.put("file", BODY),), SUM, tmp_path, bar)
    assert bar.total == bar.done == len(BODY)
    assert bar.closed


def test_a_bar_is_closed_after_an_error(server, tmp_path):
    bar = Bar()
    failing("x", (server.put("file", b"", status=404),), SUM, tmp_path, bar, match="404")
    assert bar.closed == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("progress", "shown"), [(None, True), (False, False)])
def test_terminals_show_a_bar(server, tmp_path, monkeypatch, progress, shown):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    fetch("x", (server.put("file.gz", BODY),), SUM, tmp_path, progress)
    text = sys.stderr.getvalue()
    assert ("file.gz" in text) == shown
    assert ("179.2/179.2 kB" in text) == shown
    failing("x", (server.put("no", b"", status=404),), OTHER, tmp_path, progress, match="404")


def test_the_log_of_pooch_is_left_as_it_was(server, tmp_path):
    log = pooch.get_logger()
    before = log.level
    log.setLevel(17)
    try:
        fetch("x", (server.put("file", BODY),), SUM, tmp_path)
        failing("x", (server.put("no", b"", status=404),), OTHER, tmp_path, match="404")
        assert log.level == 17
    finally:
        log.setLevel(before)

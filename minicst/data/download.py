"""Downloads with a published checksum, and where they are kept."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import pooch

CACHE_VARIABLE = "MINICST_DATA"

_CHUNK = 1 << 16  # bytes
_TIMEOUT = 30  # seconds without an answer or without a byte


class Bar(Protocol):
    """What a progress bar must have: part of tqdm's interface, as pooch calls it."""

    total: float

    def update(self, amount: float, /) -> object:
        """Go on by `amount` bytes."""

    def reset(self) -> object:
        """Go back to zero."""

    def close(self) -> object:
        """Take the bar away."""


Show = Bar | Literal[False] | None


def cache_folder() -> Path:
    """Return the folder that downloads are kept in; it need not exist.

    It is the environment variable MINICST_DATA where that is set and not empty, else the user's
    cache folder of this system for "minicst".
    """
    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("minicst"))


def by_hand(urls: tuple[str, ...], checksum: str) -> str:
    """Return the advice that ends a message: how to do without the download."""
    return f"by hand: fetch {urls[0]} ({checksum}), put it into a folder and give --data-dir FOLDER"


def check_sum(path: Path, checksum: str) -> bool:
    """Return whether a file has a checksum, written `"algorithm:hex digits"`."""
    algorithm, digits = checksum.split(":")
    return bool(pooch.file_hash(str(path), alg=algorithm) == digits)


def fetch(
    name: str, urls: tuple[str, ...], checksum: str, folder: Path, progress: Show = None
) -> Path:
    """Return a file of the cache, downloaded first where it isn't there or has another checksum.

    The URLs are tried in turn until one gives the file with that checksum. It is written under
    another name and renamed when its checksum is right, so nothing half-written is left under its
    own. A file that is there with the right checksum needs no network and no writable folder.

    Args:
        name: Data set, for messages.
        urls: Where it can be had; they end in the same file name.
        checksum: `"algorithm:hex digits"`.
        folder: Where it is kept; made where missing.
        progress: None shows a bar on stderr where that is a terminal, False shows none; or a bar
            of one's own, used for this file.

    Raises:
        ValueError: No URL gave the file, or the folder can't be written to.
    """
    target = folder / urls[0].rsplit("/", 1)[1]
    advice = by_hand(urls, checksum)
    failures = []
    for url in urls:
        try:
            # A bar is made for each try; retrieve itself looks for the file first.
            with _quiet_log(), _Shown(progress, target.name) as bar:
                downloader = pooch.HTTPDownloader(
                    progressbar=bar or False,
                    chunk_size=_CHUNK,
                    timeout=_TIMEOUT,
                    # Else a server may say that a .gz is its encoding, and it comes unpacked.
                    headers={"Accept-Encoding": "identity"},
                )
                pooch.retrieve(url, checksum, target.name, folder, downloader=downloader)
            return target
        except ValueError as error:
            failures.append(f"{url}: {_one_line(error)}")
        except OSError as error:
            # Of this machine: the network's have no number. pooch raises its own PermissionError.
            if error.errno is not None or isinstance(error, PermissionError):
                reason = error.strerror or "Permission denied"
                raise ValueError(
                    f"{name}: can't write {target} ({reason}); set {CACHE_VARIABLE} to a folder "
                    f"that can be written to, or {advice}"
                ) from error
            failures.append(f"{url}: {_one_line(error)}")
    raise ValueError(f"{name}: no download to {target} worked ({'; '.join(failures)}); {advice}")


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep pooch from writing a line about each download to stderr."""
    log = pooch.get_logger()
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _one_line(error: Exception) -> str:
    # requests wraps what went wrong: the reason is inside, after the connection's description.
    reason = getattr(error.args[0], "reason", None) if error.args else None
    text = " ".join(str(reason or error).split())
    return (text.rpartition("): ")[2] if reason else text)[:300]


class _RichBar:
    """A bar of `rich` behind tqdm's methods."""

    def __init__(self, name: str) -> None:
        # Here, because importing minicst's arithmetic shall not load rich.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._progress = Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True))
        self._task = self._progress.add_task(name, total=None)
        self._progress.start()
        self._total = 0.0

    @property
    def total(self) -> float:
        return self._total

    @total.setter
    def total(self, value: float) -> None:
        self._total = value
        # 0 is pooch's word for a size that the server doesn't tell.
        self._progress.update(self._task, total=value or None)

    def update(self, amount: float, /) -> None:
        self._progress.advance(self._task, amount)

    def reset(self) -> None:
        # Not Progress.reset: it forgets the speed as well.
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        self._progress.stop()


class _Shown:
    """The bar to show, if any, closed on the way out: pooch leaves it open after an error."""

    def __init__(self, progress: Show, name: str) -> None:
        self._bar: Bar | None = None
        if progress is None:
            if sys.stderr is not None and sys.stderr.isatty():
                self._bar = _RichBar(name)
        elif progress is not False:
            self._bar = progress

    def __enter__(self) -> Bar | None:
        return self._bar

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

"""Unpack a tar.gz archive of known content, trusting nothing that it says."""

import gzip
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

_CHUNK = 1 << 20  # bytes
_SMALL = 1 << 20  # bytes of a member that nobody asked for, as a readme
_SLACK = 1 << 24  # bytes for headers, padding and such members


def unpack(
    name: str, archive: Path, limits: Mapping[str, int], folder_name: str, *, beside: Path
) -> Path:
    """Unpack the members FOLDER_NAME/FILE that are asked for, and return their folder.

    Only these files are written, each by its own name and never more than its limit of bytes;
    small other files of the archive are left out. They go into a temporary folder next to the
    final one, which is renamed when all of them are complete: after an error nothing is left.

    Args:
        name: Data set, for messages.
        archive: The .tar.gz file.
        limits: The files wanted, and the most bytes that each may have.
        folder_name: Folder of the files, inside the archive and afterwards.
        beside: Folder to put `folder_name` in.

    Returns:
        `beside / folder_name`. Where it is there already, by another process, it stays as it is.

    Raises:
        ValueError: The archive is damaged, lacks a file, or holds a path that leaves the folder,
            a link, a device, a file twice, or more bytes than the limits; or `beside` can't be
            written to.
    """
    target = beside / folder_name
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder_name}-", dir=beside))
    except OSError as error:
        raise ValueError(
            f"{name}: can't unpack {archive} next to itself ({error.strerror}); unpack it "
            "elsewhere and give --data-dir FOLDER"
        ) from error
    try:
        _write_members(name, archive, limits, folder_name, temporary)
        temporary.chmod(0o755)  # mkdtemp makes it private
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        return target
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{name}: {archive} is damaged or cut short ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{name}: unpacking {archive} into {target} failed: {error.strerror or error}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_members(
    name: str, archive: Path, limits: Mapping[str, int], folder_name: str, out: Path
) -> None:
    found: set[str] = set()
    with gzip.open(archive) as packed:
        stream = _Bounded(cast(BinaryIO, packed), sum(limits.values()) + _SLACK)
        with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|") as tar:
            for member in tar:
                file_name = _wanted(name, archive, member, limits, folder_name)
                if file_name is None:
                    continue
                if file_name in found:
                    raise _hostile(name, archive, member, "it is there twice")
                found.add(file_name)
                data = tar.extractfile(member)
                assert data is not None  # it is a regular file
                with (out / file_name).open("xb") as file:
                    shutil.copyfileobj(data, file, _CHUNK)
                if (out / file_name).stat().st_size != member.size:
                    raise EOFError(f"{member.name} ends early")
        while stream.read(_CHUNK):  # gzip's own checksum stands at its end
            pass
    missing = [file_name for file_name in limits if file_name not in found]
    if missing:
        raise ValueError(
            f"{name}: {archive} has no {folder_name}/{missing[0]}; it is cut short or another "
            "archive, fetch it again"
        )


def _wanted(
    name: str,
    archive: Path,
    member: tarfile.TarInfo,
    limits: Mapping[str, int],
    folder_name: str,
) -> str | None:
    """Return the file name under which a member is written, None for not at all."""
    path = PurePosixPath(member.name)
    # A backslash and a drive count elsewhere; no archive asked for here has one.
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
        raise _hostile(name, archive, member, "its path leaves the folder")
    if not (member.isreg() or member.isdir()):
        raise _hostile(name, archive, member, "it is a link or a device, not a file")
    if member.isdir():
        return None
    known = len(path.parts) == 2 and path.parts[0] == folder_name and path.name in limits
    limit = limits[path.name] if known else _SMALL
    if member.size > limit:
        raise _hostile(name, archive, member, f"it has {member.size} bytes, at most {limit} fit")
    return path.name if known else None


def _hostile(name: str, archive: Path, member: tarfile.TarInfo, why: str) -> ValueError:
    return ValueError(
        f"{name}: {archive} holds {member.name!r}: {why}; nothing was unpacked, fetch the archive "
        "from its publisher"
    )


class _Bounded:
    """A stream that may be read up to a number of bytes: a small archive can unpack to any size."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._left = limit

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {self._limit} bytes")
        return data

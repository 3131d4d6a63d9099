"""Files: arrays with a JSON header in an npz, written atomically, read without pickle."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minicst.nn import Network

FORMAT = "minicst"
VERSION = 1


def write_arrays(path: Path, kind: str, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write arrays and a header; an older file at `path` stays whole until the new one is.

    Args:
        path: target, ends in .npz.
        kind: "checkpoint" or "network"; read_arrays asks for it.
        header: plain data, stored as JSON.
        arrays: {name: array}.

    Raises:
        ValueError: if it can't be written (disk full, no permission); says what is kept.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, "kind": kind, **header})
    packed = {"header": np.frombuffer(text.encode(), np.uint8), **arrays}
    with _replacing(path) as file:
        np.savez(file, allow_pickle=False, **packed)


def write_text(path: Path, text: str) -> None:
    """Write a text file; an older one at `path` stays whole until the new one is.

    Raises:
        ValueError: as write_arrays.
    """
    with _replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file beside `path` that takes its place only when it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the file saved before is unchanged" if path.exists() else ""
        raise ValueError(
            f"can't write {path}: {error.strerror or error}{kept}; free some space or choose "
            "another folder with --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_arrays(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (header, arrays) of a file of write_arrays; no pickle is ever run.

    Raises:
        ValueError: if the file is missing, damaged, of another program, kind or version.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes().decode())
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror or error}") from error
    except (KeyError, AttributeError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        # A bare .npy array has no context manager, hence AttributeError and TypeError.
        raise ValueError(f"{path} isn't a file of minicst: it has no header") from error
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        # RuntimeError: a damaged zip may look encrypted, or (NotImplementedError) exotic.
        raise ValueError(
            f"{path} is damaged or not an npz file ({error}); use a copy or start again"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{path} isn't a file of minicst")
    if header.get("kind") != kind:
        raise ValueError(f"{path} holds a {header.get('kind')}, and a {kind} is needed")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{path} has format version {header.get('version')}; this minicst reads {VERSION}"
        )
    return header, arrays


def save(network: Network, path: str | Path) -> None:
    """Write a network, cut ones included: wiring, parameters and running statistics.

    Raises:
        ValueError: if it can't be written.
    """
    header = {"spec": network.spec(), "dtype": str(network.parameters()[0].dtype)}
    write_arrays(Path(path), "network", header, network.host_state())


def load(path: str | Path) -> Network:
    """Read a network of save(); nothing needs to be known about it.

    Raises:
        ValueError: if the file is missing, damaged or foreign.
    """
    header, arrays = read_arrays(Path(path), "network")
    try:
        network = Network.from_spec(header["spec"])
        network.astype(np.dtype(header["dtype"]))
        network.load_state(arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} doesn't describe a network that this minicst knows: {error}"
        ) from error
    return network

"""cupy.cuda: one device, streams and events, memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from .memory import (
    DEVICE_BYTES,
    MemoryPool,
    OutOfMemoryError,
    PinnedMemoryPool,
    get_default_memory_pool,
    using_allocator,
)
from .streams import Event, Stream, get_current_stream, get_elapsed_time, wait_for_everything

__all__ = [
    "Device",
    "Event",
    "MemoryPool",
    "PinnedMemoryPool",
    "Stream",
    "get_current_stream",
    "get_elapsed_time",
    "is_available",
    "memory",
    "runtime",
    "using_allocator",
]

NAME = b"NVIDIA H100 (stand-in)"


class CUDARuntimeError(RuntimeError):
    """What CUDA's runtime raises."""


class Device:
    """The one device, number 0."""

    id = 0
    compute_capability = "90"

    def __init__(self, device: int | None = None) -> None:
        _check_device(0 if device is None else device)

    def use(self) -> Device:
        return self

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def synchronize(self) -> None:
        """Let the host wait for all streams."""
        wait_for_everything()

    @property
    def mem_info(self) -> tuple[int, int]:
        """Free and total bytes."""
        return DEVICE_BYTES - get_default_memory_pool().total_bytes(), DEVICE_BYTES


def is_available() -> bool:
    return True


def _check_device(device: Any) -> None:
    if int(device) != 0:
        raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")


def getDeviceCount() -> int:
    return 1


def getDeviceProperties(device: int) -> dict[str, Any]:
    _check_device(device)
    return {
        "name": NAME,
        "totalGlobalMem": DEVICE_BYTES,
        "multiProcessorCount": 132,
        "major": 9,
        "minor": 0,
    }


def runtimeGetVersion() -> int:
    return 13000


def driverGetVersion() -> int:
    return 13000


def deviceSynchronize() -> None:
    wait_for_everything()


def getDevice() -> int:
    return 0


def memGetInfo() -> tuple[int, int]:
    return Device().mem_info


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    deviceSynchronize=deviceSynchronize,
    driverGetVersion=driverGetVersion,
    getDevice=getDevice,
    getDeviceCount=getDeviceCount,
    getDeviceProperties=getDeviceProperties,
    memGetInfo=memGetInfo,
    runtimeGetVersion=runtimeGetVersion,
)
memory = SimpleNamespace(MemoryPool=MemoryPool, OutOfMemoryError=OutOfMemoryError)

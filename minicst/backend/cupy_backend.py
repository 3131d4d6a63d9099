"""The GPU backend: CuPy arrays, plain CUDA kernels and 2-D products, all on one stream."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from minicst.backend.base import Array
from minicst.backend.cupy_convolution import WORKSPACE_MB, CupyConvolutionOps
from minicst.backend.cupy_layers import CupyLayerOps


class CupyBackend(CupyConvolutionOps, CupyLayerOps):
    """Channels-last arrays of cupy; what isn't overridden here is NumPy-style code on `xp`.

    Nothing in it waits for the device: only to_numpy and Tensor.item do. Sums are taken in a fixed
    order and nothing is added by atomics, so a run repeats bit for bit on one GPU.

    Args:
        cupy: the module; imported if not given.
        cupyx: its companion; imported if not given.

    Attributes:
        precision: of products of float32: "float32", or "tf32" (10 bits of mantissa).
    """

    name = "cuda"

    def __init__(self, cupy: Any = None, cupyx: Any = None) -> None:
        super().__init__(importlib.import_module("cupy") if cupy is None else cupy)
        self.cupyx = importlib.import_module("cupyx") if cupyx is None else cupyx
        self.precision = "unset"  # CuPy's own default, which CUPY_TF32 changes
        self._copy_stream: Any = None

    def configure(self, precision: str = "float32", workspace_mb: int = WORKSPACE_MB) -> None:
        """Set the precision of products and the size of the column workspace.

        Raises:
            ValueError: for an unknown precision, a GPU without TF32, or a workspace below 1 MB.
        """
        self._check_configuration(precision, workspace_mb)
        if precision == "tf32" and int(self.xp.cuda.Device().compute_capability) < 80:
            raise ValueError(
                f"--precision tf32: {self.device_name} has no TF32 (compute capability 8.0 or "
                "more is needed); use --precision float32"
            )
        if precision != self.precision:
            core = self.xp._core  # CuPy's only switch but CUPY_TF32, which is read once
            types = core._routines_linalg
            chosen = types.COMPUTE_TYPE_TF32 if precision == "tf32" else types.COMPUTE_TYPE_DEFAULT
            core.set_compute_type(self.xp.float32, chosen)
            self.precision = precision
        self.workspace_bytes = workspace_mb << 20

    @property
    def device_name(self) -> str:
        """Name of the card."""
        device = self.xp.cuda.Device()
        name = self.xp.cuda.runtime.getDeviceProperties(device.id)["name"]
        return name.decode() if isinstance(name, bytes) else str(name)

    @property
    def device_bytes(self) -> int:
        """Bytes of the card's memory that CuPy's pool holds: its peak, nearly."""
        return int(self.xp.get_default_memory_pool().total_bytes())

    def asarray(self, values: Any, dtype: Any = None) -> Array:
        """Return `values` as a device array; what is on the host is copied."""
        return self.xp.asarray(values, dtype=dtype)

    def to_numpy(self, array: Array) -> np.ndarray:
        """Copy the array to the host; waits for it to be computed."""
        return array if isinstance(array, np.ndarray) else self.xp.asnumpy(array)

    def synchronize(self) -> None:
        """Wait until everything launched has been computed."""
        self.xp.cuda.get_current_stream().synchronize()

    def mark(self) -> Any:
        """Record an event on the stream that computes."""
        return self.xp.cuda.get_current_stream().record()

    @contextmanager
    def copying(self, after: Any = None) -> Iterator[None]:
        """Inside, the calling thread's arrays and copies are on a stream of their own.

        Memory comes from that stream's part of the pool, so it was last used by an earlier
        sub-network, whose computation `after` has to cover.
        """
        stream = self._copies()
        if after is not None:
            stream.wait_event(after)
        with stream:
            yield

    def staging(self, small: Array) -> np.ndarray:
        """Return pinned host memory, which the card reads by itself."""
        return self.cupyx.empty_pinned(small.shape, small.dtype)

    def upload(self, staged: np.ndarray, small: Array) -> None:
        """Start copying staged to small on the stream of copies."""
        small.set(staged, stream=self._copies())

    def copied(self) -> Any:
        """Record an event on the stream of copies."""
        return self._copies().record()

    def wait_for(self, mark: Any) -> None:
        """Let the stream that computes wait; the host doesn't."""
        self.xp.cuda.get_current_stream().wait_event(mark)

    def download(self, arrays: Sequence[Array], after: Any = None) -> list[np.ndarray]:
        """Copy arrays to pinned memory on the stream of copies; the calling thread waits."""
        stream = self._copies()
        stream.wait_event(self.mark() if after is None else after)
        staged = [self.staging(array) for array in arrays]
        for array, host in zip(arrays, staged, strict=True):
            array.get(out=host, stream=stream, blocking=False)
        stream.synchronize()
        return staged

    def _copies(self) -> Any:
        if self._copy_stream is None:
            # Not blocking: a plain stream waits for the default one, on which all is computed.
            self._copy_stream = self.xp.cuda.Stream(non_blocking=True)
        return self._copy_stream

    def indices(self, arrays: Sequence[Any]) -> list[Array]:
        """Copy channel numbers to the device, int64, all in one transfer."""
        if not arrays:
            return []
        sizes = [len(array) for array in arrays]
        packed = self.asarray(np.concatenate([np.asarray(a, np.int64) for a in arrays]))
        ends = np.cumsum(sizes).tolist()
        return [packed[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def entries(self, shape: tuple[int, ...], rows: Array | None, columns: Array | None) -> Any:
        """Rows, columns and the sizes that the kernels take."""
        full_columns = shape[-1] if len(shape) > 1 else 1
        n_columns = full_columns if columns is None else columns.size
        return rows, columns, (prod(shape[1:-1]), n_columns, full_columns)

    def gather(self, full: Array, entries: Any, small: Array) -> None:
        """Fill small with full's entries."""
        rows, columns, sizes = entries
        arrays = (full, rows, columns, small)
        self.launch("gather_block", full.dtype, small.size, *arrays, small.size, *sizes)

    def scatter(self, full: Array, entries: Any, small: Array) -> None:
        """Set full's entries to small's numbers."""
        rows, columns, sizes = entries
        arrays = (full, rows, columns, small)
        self.launch("scatter_block", full.dtype, small.size, *arrays, small.size, *sizes)

    def take_channels(self, x: Array, index: Array) -> Array:
        """Return channels `index` (distinct) of the last axis."""
        out = self.xp.empty((*x.shape[:-1], index.size), x.dtype)
        self.gather(self.contiguous(x), (None, index, (1, index.size, x.shape[-1])), out)
        return out

    def place_channels(self, x: Array, index: Array, channels: int) -> Array:
        """Return zeros (..., channels) with x's channels at places `index` (distinct)."""
        out = self.xp.zeros((*x.shape[:-1], channels), x.dtype)
        self.scatter(out, (None, index, (1, index.size, channels)), self.contiguous(x))
        return out

    def add(self, a: Array, b: Array, relu: bool = False) -> Array:
        """Return a + b, or max(a + b, 0) with relu; a and b have one shape and dtype."""
        out = self.xp.empty(a.shape, a.dtype)
        arrays = (self.contiguous(a), self.contiguous(b), out)
        self.launch("add", out.dtype, out.size, *arrays, out.size, int(relu))
        return out

    def relu(self, x: Array) -> Array:
        """max(x, 0), elementwise."""
        out = self.xp.empty(x.shape, x.dtype)
        self.launch("relu", x.dtype, x.size, self.contiguous(x), out, x.size)
        return out

    def relu_backward(self, grad_out: Array, out: Array) -> Array:
        """grad_out where out > 0, else 0."""
        grad_x = self.xp.empty(out.shape, out.dtype)
        arrays = (self.contiguous(grad_out), self.contiguous(out), grad_x)
        self.launch("relu_backward", out.dtype, out.size, *arrays, out.size)
        return grad_x

    def sgd_update(
        self,
        weight: Array,
        grad: Array,
        velocity: Array | None,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """One launch, see NumpyBackend's."""
        numbers = (float(lr), float(momentum), float(weight_decay), int(nesterov))
        arrays = (weight, grad, velocity)
        self.launch("sgd", weight.dtype, weight.size, *arrays, weight.size, *numbers)

    def adam_update(
        self,
        weight: Array,
        grad: Array,
        first: Array,
        second: Array,
        step: int,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        """One launch, see NumpyBackend's."""
        b1, b2 = betas
        numbers = (lr / (1 - b1**step), b1, b2, 1 - b2**step, eps, weight_decay)
        arrays = (weight, grad, first, second)
        floats = tuple(float(number) for number in numbers)
        self.launch("adam", weight.dtype, weight.size, *arrays, weight.size, *floats)

"""What every backend shares: geometry, the readable im2col and col2im, and the meter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minicst.backend.entries import flat_positions
from minicst.backend.meter import Meter

PRECISIONS = ("float32", "tf32")
Array = Any  # numpy.ndarray or cupy.ndarray: one backend never mixes the two


def conv_output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    """Return floor((size + 2 padding - kernel) / stride) + 1, in pixels.

    Raises:
        ValueError: if the kernel is larger than the padded input.
    """
    out = (size + 2 * padding - kernel) // stride + 1
    if out < 1:
        raise ValueError(
            f"a window of {kernel} does not fit into {size} + 2 * {padding} pixels: "
            "use a larger input, a smaller kernel or more padding"
        )
    return out


class Backend:
    """One device and its arrays.

    Subclasses set `name` and `xp` (the array module) and provide the hot operations:
    convolution, batch norm, pooling and optimizer updates, all on raw channels-last arrays.
    Everything else in minicst uses `backend.xp`.

    Attributes:
        name: "numpy" or "cuda".
        xp: the array module.
        meter: counts what was executed.
        exact_times: whether a stopwatch waits for the device at the end of every phase.
    """

    name = ""
    exact_times = False
    xp: Any = None

    # The hot operations; formulas and shapes stand where the CPU backend defines them.
    conv2d: Callable[..., Array]  # convolution.py
    conv2d_grad_weight: Callable[..., Array]
    conv2d_grad_input: Callable[..., Array]
    batch_norm_statistics: Callable[..., tuple[Array, Array]]  # normalization.py
    scale_shift: Callable[..., Array]
    batch_norm_backward: Callable[..., tuple[Array, Array, Array]]
    max_pool2d: Callable[..., tuple[Array, Array | None]]  # pooling.py
    max_pool2d_backward: Callable[..., Array]
    avg_pool2d: Callable[..., Array]
    avg_pool2d_backward: Callable[..., Array]
    sparse_linear: Callable[..., Array]  # sparse_linear.py
    sparse_linear_grad_weight: Callable[..., Array]
    sparse_linear_grad_input: Callable[..., Array]
    add: Callable[..., Array]  # numpy_backend.py
    relu: Callable[..., Array]
    relu_backward: Callable[..., Array]
    sgd_update: Callable[..., None]
    adam_update: Callable[..., None]

    def __init__(self) -> None:
        self.meter = Meter()

    @property
    def sparse(self) -> Any:
        """Module of sparse matrices: scipy.sparse or cupyx.scipy.sparse."""
        raise NotImplementedError

    def asarray(self, values: Any, dtype: Any = None) -> Array:
        """Return `values` as an array of this backend; NumPy arrays are copied to the device."""
        return self.xp.asarray(values, dtype=dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return zeros for what is kept as long as a network: its own and its optimizer's state."""
        return self.xp.zeros(shape, dtype)

    def as_state(self, values: Any) -> Array:
        """Return values as an array in C order that is kept as long as a network."""
        return self.xp.asarray(values, order="C")

    def to_numpy(self, array: Array) -> Any:
        """Return the array on the host as numpy.ndarray."""
        raise NotImplementedError

    def configure(self, precision: str = "float32", workspace_mb: int = 256) -> None:
        """Set what only a GPU has a choice of; the CPU takes products in the arrays' precision.

        Args:
            precision: "float32", or "tf32" for products of float32 arrays on a GPU.
            workspace_mb: most that the columns of a convolution's chunk take on a GPU, MB.

        Raises:
            ValueError: if it can't be had.
        """
        self._check_configuration(precision, workspace_mb)
        if precision != "float32":
            raise ValueError(f"--precision {precision} is of --device cuda: leave it at float32")

    def _check_configuration(self, precision: str, workspace_mb: int) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision '{precision}': choose {' or '.join(PRECISIONS)}")
        if workspace_mb < 1:
            raise ValueError(f"--workspace-mb {workspace_mb}: it must be at least 1")

    @property
    def device_bytes(self) -> int | None:
        """Bytes that were taken of a GPU's own memory; None on the CPU."""
        return None

    def synchronize(self) -> None:
        """Wait until everything asked for has been computed; on the CPU it has."""

    def indices(self, arrays: Sequence[Any]) -> list[Array]:
        """Return channel numbers (host, int) as arrays of this backend, all in one transfer."""
        return list(arrays)

    # How sub-networks come from another backend's arrays and go back. On the CPU nothing has to be
    # copied; a GPU copies on a stream of its own, beside the computation.

    def mark(self) -> Any:
        """Return a mark behind everything asked for so far, for copying() and download()."""
        return None

    @contextmanager
    def copying(self, after: Any = None) -> Iterator[None]:
        """Inside, arrays are made and copied to beside the computation, once `after` is passed.

        Args:
            after: a mark behind the last use of memory that may be handed out again.
        """
        yield

    def staging(self, small: Array) -> Any:
        """Return a host array, shape and dtype of small, that upload() takes: on the CPU small."""
        return small

    def upload(self, staged: Any, small: Array) -> None:
        """Start copying staged to small, inside copying(); staged must stay as it is meanwhile."""

    def copied(self) -> Any:
        """Return a mark behind all uploads so far, for wait_for()."""
        return None

    def wait_for(self, mark: Any) -> None:
        """Let what is asked for from now on wait for a mark of copied()."""

    def download(self, arrays: Sequence[Array], after: Any = None) -> list[Any]:
        """Return arrays on the host, as they are at the mark `after`; on the CPU themselves."""
        return list(arrays)

    def share_out(self, n_tasks: int, task: Callable[[int], None], n_bytes: int) -> None:
        """Call task(0) ... task(n_tasks - 1), by as many threads as the backend has.

        No task may write where another reads or writes. n_bytes: memory that all pass over, which
        says whether threads pay.
        """
        for i in range(n_tasks):
            task(i)

    def entries(self, shape: tuple[int, ...], rows: Array | None, columns: Array | None) -> Any:
        """Return what gather and scatter need to find rows and columns in an array of this shape.

        Args:
            shape: of the full array.
            rows: numbers along the first axis, ascending; None: all.
            columns: numbers along the last axis, ascending; None: all.
        """
        return flat_positions(shape, rows, columns)

    def gather(self, full: Array, entries: Any, small: Array) -> None:
        """Fill small with full's entries; both arrays are contiguous."""
        small.reshape(-1)[...] = full.reshape(-1)[entries]

    def scatter(self, full: Array, entries: Any, small: Array) -> None:
        """Set full's entries to small's numbers; both arrays are contiguous."""
        full.reshape(-1)[entries] = small.reshape(-1)

    def batch_norm_fold(
        self, mean: Array, variance: Array, gamma: Array, beta: Array, eps: float
    ) -> tuple[Array, Array, Array]:
        """Write batch norm as one scale and shift: gamma (x - mean) / std + beta = x scale + shift.

        Args:
            mean: (c,).
            variance: (c,).
            gamma: (c,).
            beta: (c,).
            eps: added to the variance.

        Returns:
            1 / sqrt(variance + eps), scale and shift, (c,) each.
        """
        inv_std = 1.0 / self.xp.sqrt(variance + eps)
        scale = gamma * inv_std
        return inv_std, scale, beta - mean * scale

    def batch_norm_track(
        self,
        running: tuple[Array, Array],
        batch: tuple[Array, Array],
        live: Array | None,
        momentum: float,
        unbiased: float,
    ) -> None:
        """In place, at live channels: running <- (1 - momentum) running + momentum batch.

        Args:
            running: mean and variance, (c,) each.
            batch: mean and biased variance of the batch, (c,) each.
            live: (c,) 0/1, or None: all.
            momentum: weight of the batch.
            unbiased: factor on its variance, N / (N - 1).
        """
        mean, variance = batch
        for old, new in zip(running, (mean, variance * unbiased), strict=True):
            moved = (1 - momentum) * old + momentum * new
            old[...] = moved if live is None else self.xp.where(live > 0, moved, old)

    def cross_entropy(
        self, logits: Array, labels: Array, label_smoothing: float
    ) -> tuple[Array, Array]:
        """Return the mean of -sum_k q_k ln p_k, p = softmax(logits), and p - q, both float64.

        Args:
            logits: (n, k).
            labels: (n,) integers.
            label_smoothing: q is 1 at the label, mixed with so much of 1 / k.

        Returns:
            0-d, and (n, k).
        """
        xp = self.xp
        n, k = logits.shape
        z = logits.astype(xp.float64)
        z = z - z.max(axis=1, keepdims=True)
        log_p = z - xp.log(xp.exp(z).sum(axis=1, keepdims=True))
        target = xp.full((n, k), label_smoothing / k)
        target[xp.arange(n), labels] += 1.0 - label_smoothing
        return -(target * log_p).sum() / n, xp.exp(log_p) - target

    def take_channels(self, x: Array, index: Array) -> Array:
        """Return channels `index` (distinct) of the last axis."""
        return self.xp.take(x, index, axis=-1)

    def place_channels(self, x: Array, index: Array, channels: int) -> Array:
        """Return zeros (..., channels) with x's channels at places `index` (distinct)."""
        out = self.xp.zeros((*x.shape[:-1], channels), x.dtype)
        out[..., index] = x
        return out

    def im2col(self, x: Array, kh: int, kw: int, stride: int = 1, padding: int = 0) -> Array:
        """Lay out every window of x as one row, so that convolution is one matrix product.

        col[(n, oy, ox), (ky, kx, c)] = x[n, oy stride + ky - padding, ox stride + kx - padding, c]

        Args:
            x: (n, h, w, c).
            kh: window height.
            kw: window width.
            stride: step between windows.
            padding: zeros added on each side of h and w.

        Returns:
            (n * oh * ow, kh * kw * c), dtype of x, a copy.
        """
        n, h, w, c = x.shape
        oh = conv_output_size(h, kh, stride, padding)
        ow = conv_output_size(w, kw, stride, padding)
        padded = self.xp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        col = self.xp.empty((n, oh, ow, kh, kw, c), x.dtype)
        for ky in range(kh):
            for kx in range(kw):
                rows = slice(ky, ky + stride * oh, stride)
                cols = slice(kx, kx + stride * ow, stride)
                col[:, :, :, ky, kx, :] = padded[:, rows, cols, :]
        return col.reshape(n * oh * ow, kh * kw * c)

    def col2im(
        self,
        col: Array,
        x_shape: tuple[int, int, int, int],
        kh: int,
        kw: int,
        stride: int = 1,
        padding: int = 0,
    ) -> Array:
        """Add every row of col back to its window: the transpose of im2col.

        <col, im2col(x)> = <col2im(col), x> for all x and col.

        Args:
            col: (n * oh * ow, kh * kw * c).
            x_shape: (n, h, w, c) of the result.
            kh: window height.
            kw: window width.
            stride: step between windows.
            padding: as given to im2col; what fell on it is dropped.

        Returns:
            (n, h, w, c), dtype of col.
        """
        n, h, w, c = x_shape
        oh = conv_output_size(h, kh, stride, padding)
        ow = conv_output_size(w, kw, stride, padding)
        padded = self.xp.zeros((n, h + 2 * padding, w + 2 * padding, c), col.dtype)
        col = col.reshape(n, oh, ow, kh, kw, c)
        for ky in range(kh):
            for kx in range(kw):
                rows = slice(ky, ky + stride * oh, stride)
                cols = slice(kx, kx + stride * ow, stride)
                padded[:, rows, cols, :] += col[:, :, :, ky, kx, :]
        return padded[:, padding : padding + h, padding : padding + w, :]

    def depthwise_conv2d(
        self,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        stride: int = 1,
        padding: int = 0,
    ) -> Array:
        """out[n, y, x, c] = b[c] + sum_{ky, kx} x[n, y s + ky - p, x s + kx - p, c] w[c, ky, kx].

        Args:
            x: (n, h, w, c).
            weight: (c, kh, kw, 1).
            bias: (c,) or None.
            stride: step between windows.
            padding: zeros on each side of h and w.

        Returns:
            (n, oh, ow, c), dtype of x.
        """
        n, h, w, c = x.shape
        _, kh, kw, _ = weight.shape
        oh = conv_output_size(h, kh, stride, padding)
        ow = conv_output_size(w, kw, stride, padding)
        padded = self.xp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        out = self.xp.zeros((n, oh, ow, c), x.dtype)
        for ky, kx, at in _tap_slices(kh, kw, oh, ow, stride):
            out += padded[at] * weight[:, ky, kx, 0]
        if bias is not None:
            out += bias
        self.meter.record("forward", out.size * kh * kw, x.nbytes + weight.nbytes + out.nbytes)
        return out

    def depthwise_conv2d_grad_weight(
        self,
        x: Array,
        grad_out: Array,
        weight_shape: tuple[int, int, int, int],
        stride: int = 1,
        padding: int = 0,
    ) -> Array:
        """grad_weight[c, ky, kx] = sum_{n, y, x} x[n, y s + ky - p, x s + kx - p, c] g[n, y, x, c].

        Shapes as in depthwise_conv2d.
        """
        _, kh, kw, _ = weight_shape
        _, oh, ow, _ = grad_out.shape
        padded = self.xp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        grad = self.xp.empty(weight_shape, x.dtype)
        for ky, kx, at in _tap_slices(kh, kw, oh, ow, stride):
            grad[:, ky, kx, 0] = (padded[at] * grad_out).sum(axis=(0, 1, 2))
        n_bytes = x.nbytes + grad_out.nbytes + grad.nbytes
        self.meter.record("weight_gradient", grad_out.size * kh * kw, n_bytes)
        return grad

    def depthwise_conv2d_grad_input(
        self,
        grad_out: Array,
        weight: Array,
        x_shape: tuple[int, int, int, int],
        stride: int = 1,
        padding: int = 0,
    ) -> Array:
        """Add grad_out times each tap back to the pixels that it read: the transpose in x.

        Shapes as in depthwise_conv2d.
        """
        n, h, w, c = x_shape
        _, kh, kw, _ = weight.shape
        _, oh, ow, _ = grad_out.shape
        padded = self.xp.zeros((n, h + 2 * padding, w + 2 * padding, c), grad_out.dtype)
        for ky, kx, at in _tap_slices(kh, kw, oh, ow, stride):
            padded[at] += grad_out * weight[:, ky, kx, 0]
        grad_x = padded[:, padding : padding + h, padding : padding + w]
        n_bytes = grad_out.nbytes + weight.nbytes + grad_x.nbytes
        self.meter.record("input_gradient", grad_out.size * kh * kw, n_bytes)
        return grad_x


def _tap_slices(
    kh: int, kw: int, oh: int, ow: int, stride: int
) -> Iterator[tuple[int, int, tuple[slice, slice, slice]]]:
    """For each tap of a window: its place ky, kx and the padded pixels that it reads."""
    for ky in range(kh):
        for kx in range(kw):
            rows = slice(ky, ky + stride * (oh - 1) + 1, stride)
            cols = slice(kx, kx + stride * (ow - 1) + 1, stride)
            yield ky, kx, (slice(None), rows, cols)

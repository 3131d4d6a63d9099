"""Linear layers of which only some weights exist: products with a sparse matrix.

    out = S x^T, transposed        S (c_out, c_in), its live entries listed row by row
    grad_x = S^T g^T, transposed
    grad_value[k] = sum_n g[n, row_k] x[n, column_k]        at live entries only

Nothing of shape (c_out, c_in) is ever allocated. Written with `backend.xp` and `backend.sparse`
(scipy.sparse, or cupyx.scipy.sparse), so that it holds on every device. On the CPU all of it runs
on one thread: a second one took as long as it saved (measured at 512 x 784, batch 64).
"""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any

import numpy as np

from minicst.backend.base import Array, Backend

CHUNK_BYTES = 512 << 10  # of gathered operands (measured: .25 to 1 MB alike)


class Pattern:
    """Places of the live entries of a (c_out, c_in) matrix, row by row: the CSR form.

    Args:
        shape: (c_out, c_in).
        pointers: (c_out + 1,): row r has the entries pointers[r] up to pointers[r + 1].
        columns: (size,) column of every entry, ascending within a row.

    Attributes:
        shape: (c_out, c_in).
        pointers: int32 (int64 from 2^31 entries on).
        columns: of the same type.
        rows: (size,) row of every entry.
    """

    def __init__(self, shape: tuple[int, int], pointers: Any, columns: Any) -> None:
        dtype = np.int32 if max(len(columns), *shape) < 2**31 else np.int64
        self.shape = shape
        self.pointers = np.asarray(pointers, dtype)
        self.columns = np.asarray(columns, dtype)
        self.rows = np.repeat(np.arange(shape[0], dtype=dtype), np.diff(self.pointers))

    @classmethod
    def of_mask(cls, mask: np.ndarray) -> Pattern:
        """Pattern of the true entries of a bool (c_out, c_in)."""
        rows, columns = mask.shape
        pointers = np.concatenate([[0], np.cumsum(np.count_nonzero(mask, axis=1))])
        return cls((rows, columns), pointers, np.flatnonzero(mask) % max(columns, 1))

    @classmethod
    def of_text(cls, shape: tuple[int, int], text: str) -> Pattern:
        """Pattern of text().

        Raises:
            ValueError: if the text isn't one of a matrix of this shape.
        """
        try:
            packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
        except ValueError as error:
            raise ValueError(f"pattern of a sparse linear layer is no base64: {error}") from None
        n = shape[0] * shape[1]
        if packed.size != -(-n // 8):
            raise ValueError(
                f"pattern of {packed.size} bytes: a {shape[0]}x{shape[1]} matrix has {-(-n // 8)}, "
                "a bit for each entry"
            )
        return cls.of_mask(np.unpackbits(packed, count=n).reshape(shape).astype(bool))

    def text(self) -> str:
        """One bit an entry of the matrix, packed, in base64: plain data for a file."""
        return base64.b64encode(np.packbits(self.mask()).tobytes()).decode()

    def mask(self) -> np.ndarray:
        """Return the pattern as bool (c_out, c_in)."""
        mask = np.zeros(self.shape, bool)
        mask[self.rows, self.columns] = True
        return mask

    @property
    def size(self) -> int:
        """Number of live entries."""
        return int(self.columns.size)

    @property
    def nbytes(self) -> int:
        """Bytes of pointers and columns, which a product reads."""
        return int(self.pointers.nbytes + self.columns.nbytes)


class SparseLinearOps(Backend):
    """sparse_linear and its two gradients."""

    def sparse_linear(
        self, x: Array, values: Array, pattern: Pattern, bias: Array | None = None
    ) -> Array:
        """out[n, r] = b[r] + sum over the entries k of row r of values[k] x[n, column_k].

        Args:
            x: (n, c_in).
            values: (pattern.size,) live weights, row by row, dtype of x.
            pattern: their places.
            bias: (c_out,) or None.

        Returns:
            (n, c_out), dtype of x.
        """
        out = self._transposed(self._matrix(values, pattern) @ self._transposed(x))
        if bias is not None:
            out += bias
        n_bytes = x.nbytes + values.nbytes + pattern.nbytes + out.nbytes
        self.meter.record("forward", x.shape[0] * pattern.size, n_bytes)
        return out

    def sparse_linear_grad_weight(self, x: Array, grad_out: Array, pattern: Pattern) -> Array:
        """grad[k] = sum_n grad_out[n, row_k] x[n, column_k], at live entries only.

        Args:
            x: (n, c_in).
            grad_out: (n, c_out), same dtype.
            pattern: places of the live entries.

        Returns:
            (pattern.size,), dtype of x.
        """
        grad = self.xp.empty(pattern.size, x.dtype)
        self._entry_products(self._transposed(grad_out), self._transposed(x), pattern, grad)
        n_bytes = x.nbytes + grad_out.nbytes + pattern.nbytes + grad.nbytes
        self.meter.record("weight_gradient", x.shape[0] * pattern.size, n_bytes)
        return grad

    def sparse_linear_grad_input(self, grad_out: Array, values: Array, pattern: Pattern) -> Array:
        """grad_x[n, c] = sum over the entries k of column c of values[k] grad_out[n, row_k].

        Args:
            grad_out: (n, c_out).
            values: (pattern.size,), same dtype.
            pattern: their places.

        Returns:
            (n, c_in), dtype of grad_out.
        """
        matrix = self._matrix(values, pattern)
        grad_x = self._transposed(matrix.T @ self._transposed(grad_out))
        n_bytes = grad_out.nbytes + values.nbytes + pattern.nbytes + grad_x.nbytes
        self.meter.record("input_gradient", grad_out.shape[0] * pattern.size, n_bytes)
        return grad_x

    def _matrix(self, values: Array, pattern: Pattern) -> Any:
        """The sparse matrix; its arrays are shared, not copied."""
        columns, pointers = self.asarray(pattern.columns), self.asarray(pattern.pointers)
        return self.sparse.csr_matrix((values, columns, pointers), shape=pattern.shape)

    def _transposed(self, matrix: Array) -> Array:
        """Contiguous transpose: a product with S then adds up runs of n numbers."""
        return self.xp.ascontiguousarray(matrix.T)

    def _entry_products(self, g: Array, x: Array, pattern: Pattern, out: Array) -> None:
        """out[k] = <g[row_k], x[column_k]>, in chunks of entries; g (c_out, n), x (c_in, n)."""
        xp, n = self.xp, max(x.shape[1], 1)
        rows, columns = self.asarray(pattern.rows), self.asarray(pattern.columns)
        entries = max(1, CHUNK_BYTES // (2 * n * x.itemsize))
        for start in range(0, pattern.size, entries):
            at = slice(start, start + entries)
            out[at] = xp.einsum("kn,kn->k", g[rows[at]], x[columns[at]])


class RowwiseSparseLinearOps(SparseLinearOps):
    """The same on the CPU: the weight gradient row by row, as one product of x's rows with g's.

    1.5 to 3 times as fast as gathering both where a row has some 50 entries or more.
    """

    workspace: Any

    def _entry_products(
        self, g: np.ndarray, x: np.ndarray, pattern: Pattern, out: np.ndarray
    ) -> None:
        n = x.shape[1]
        entries = max(1, CHUNK_BYTES // max(n * x.itemsize, 1))
        columns = pattern.columns.astype(np.intp)  # else take would convert every piece
        pointers = pattern.pointers.tolist()
        for row, (first, last) in enumerate(pairwise(pointers)):
            for start in range(first, last, entries):
                stop = min(start + entries, last)
                read = self.workspace.get("sparse_rows", (stop - start, n), x.dtype)
                # mode="wrap" spares numpy a buffered copy of the result.
                np.take(x, columns[start:stop], axis=0, out=read, mode="wrap")
                np.dot(read, g[row], out=out[start:stop])

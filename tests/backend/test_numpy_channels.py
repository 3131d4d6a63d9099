"""Taking and placing channels: against the plain version of the base class, for any threads."""

import numpy as np
import pytest

from minicst.backend import get_backend
from minicst.backend.base import Backend


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((2, 3), 0),
        ((2, 3), 2),
        ((4, 5, 5, 7), 7),
        ((8, 40, 40, 300), 190),
        ((3, 0), 0),
        ((0, 4), 2),
    ],
)
def test_take_and_place(shape, kept, dtype):
    rng = np.random.default_rng(0)
    backend = get_backend()
    x = rng.normal(size=shape).astype(dtype)
    index = rng.permutation(shape[-1])[:kept]
    for array in (x, np.asfortranarray(x)):
        taken = backend.take_channels(array, index)
        np.testing.assert_array_equal(taken, x[..., index])
        placed = backend.place_channels(taken, index, shape[-1])
        np.testing.assert_array_equal(
            placed, Backend.place_channels(backend, taken, index, shape[-1])
        )
        absent = np.setdiff1d(np.arange(shape[-1]), index)
        assert not placed[..., absent].any()
        assert placed.dtype == taken.dtype == dtype

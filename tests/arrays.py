"""Arrays of any device as NumPy's, for tests that compare."""

from typing import Any

import numpy as np

from minicst.autograd import Tensor
from minicst.backend import get_backend


def host(x: Any) -> Any:
    """A tensor's or array's numbers as numpy.ndarray; the same for the values of a dict or list."""
    if isinstance(x, Tensor):
        return x.numpy()
    if isinstance(x, dict):
        return {key: host(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(host(value) for value in x)
    return get_backend().to_numpy(x) if hasattr(x, "dtype") else x

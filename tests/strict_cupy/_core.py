"""cupy._core: the precision of products, which is all that minicst takes from there."""

from types import SimpleNamespace

import numpy as np

_routines_linalg = SimpleNamespace(
    COMPUTE_TYPE_TBD=0,
    COMPUTE_TYPE_DEFAULT=1,
    COMPUTE_TYPE_PEDANTIC=2,
    COMPUTE_TYPE_FP16=3,
    COMPUTE_TYPE_FP32=4,
    COMPUTE_TYPE_FP64=5,
    COMPUTE_TYPE_BF16=6,
    COMPUTE_TYPE_TF32=7,
)
_compute_types: dict[np.dtype, int] = {}


def set_compute_type(dtype: object, compute_type: int) -> None:
    if compute_type not in vars(_routines_linalg).values():
        raise ValueError(f"unknown compute type {compute_type}")
    _compute_types[np.dtype(dtype)] = compute_type


def get_compute_type(dtype: object) -> int:
    return _compute_types.get(np.dtype(dtype), _routines_linalg.COMPUTE_TYPE_DEFAULT)

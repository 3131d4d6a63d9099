"""Freed arrays come back without fresh pages, where the C library can be asked for that."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from minicst.backend import get_backend
get_backend("cpu")
def touched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(20 << 20, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
touched()
print(touched())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is asked")
def test_an_array_as_large_as_a_freed_one_needs_no_new_pages():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    # 20 MB are 5,120 pages of 4 KB, or 10 of 2 MB.
    assert int(run.stdout) < 5


def test_other_c_libraries_are_left_alone(monkeypatch):
    from minicst.backend import numpy_backend

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(numpy_backend.ctypes, "CDLL", lambda name: pytest.fail("was opened"))
    numpy_backend.keep_freed_memory()

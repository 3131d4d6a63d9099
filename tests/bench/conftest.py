"""Interpreters that have another framework, and a small bench that several tests read."""

import os
import subprocess
import sys

import pytest


def interpreter(variable, module):
    python = os.environ.get(variable, sys.executable)
    has_it = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
    if has_it.returncode != 0:
        pytest.skip(f"{python} has no {module}: set {variable} to an interpreter that has")
    return python


@pytest.fixture(scope="session")
def torch_python():
    return interpreter("MINICST_TORCH_PYTHON", "torch")


@pytest.fixture(scope="session")
def jax_python():
    return interpreter("MINICST_JAX_PYTHON", "jax")


@pytest.fixture
def script(tmp_path):
    """Write a peer of a few lines; return its path."""

    def write(text):
        path = tmp_path / "peer.py"
        path.write_text(text)
        return str(path)

    return write

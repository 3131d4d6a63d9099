"""kernels.cu through NVIDIA's own compiler, for the GPUs of some years; it needs no GPU.

Needs the packages cuda-bindings and nvidia-cuda-nvrtc.
"""

import re

import kernel_emulation
import numpy as np
import pytest

from minicst.backend.cuda_kernels import kernel_options, kernel_text

nvrtc = pytest.importorskip(
    "cuda.bindings.nvrtc", reason="cuda-bindings and nvidia-cuda-nvrtc aren't installed"
)


def asked(answer):
    """What a call returned behind its result, which must be success."""
    result, *rest = answer
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS, result
    return rest[0] if rest else None


def read(program, size, fill):
    """Bytes that the compiler keeps of a program."""
    # One more than asked for: of length 1 it would be Python's own b" ", and be written to.
    text = b" " * (asked(size(program)) + 1)
    if text:
        asked(fill(program, text))
    return text


def compiled(text, options):
    """Whether the text compiles, what the compiler said, and the machine code."""
    program = asked(nvrtc.nvrtcCreateProgram(text.encode(), b"kernels.cu", 0, [], []))
    try:
        words = [option.encode() for option in options]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(words), words)
        log = read(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
        log = log.decode().strip("\0 \n")
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            return False, log, b""
        cubin = read(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        return True, log, cubin
    finally:
        asked(nvrtc.nvrtcDestroyProgram(program))


@pytest.fixture(scope="module", autouse=True)
def library():
    """The compiler itself is another package than its bindings."""
    try:
        asked(nvrtc.nvrtcVersion())
    except Exception as error:  # the loader's own types
        pytest.skip(f"nvidia-cuda-nvrtc can't be loaded: {error}")


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_every_kernel_compiles(architecture, real):
    options = (*kernel_options(np.dtype(real)), f"-arch={architecture}")
    done, log, cubin = compiled(kernel_text(), options)
    assert done, log
    assert log == ""  # no warnings
    assert cubin.startswith(b"\x7fELF")
    entries = set(re.findall(rb"\.text\.(\w+)\0", cubin))
    kernels = kernel_emulation.kernels_of(kernel_text())
    assert kernels
    assert entries == {name.encode() for name in kernels}


def test_a_mistake_is_told():
    text = kernel_text()
    broken = text.replace("if (i >= n) return;", "if (i >= m) return;", 1)
    assert broken != text
    done, log, _ = compiled(broken, (*kernel_options("float32"), "-arch=sm_80"))
    assert not done
    assert 'identifier "m" is undefined' in log

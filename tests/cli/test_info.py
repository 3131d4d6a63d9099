"""`minicst info` with a GPU, by the stand-in, and without."""

import json
import subprocess
import sys

import pytest

from minicst.backend import why_no_gpu
from minicst.cli import main
from minicst.info import collect, cuda_facts


@pytest.fixture
def asked_anew(monkeypatch):
    why_no_gpu.cache_clear()
    yield
    monkeypatch.undo()
    why_no_gpu.cache_clear()


FACTS = {
    "name": "NVIDIA H100 (stand-in)",
    "number": 0,
    "count": 1,
    "compute_capability": "9.0",
    "memory_bytes": 80 << 30,
    "driver": "13.0",
    "runtime": "13.0",
    "cupy": "14.2.0",
}


def test_a_usable_card(gpu, asked_anew, capsys):
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["devices"] == ["cpu", "cuda"]
    assert info["cuda"] == {"usable": True, **FACTS}
    assert main(["info"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "devices cpu, cuda" in shown
    assert (
        "NVIDIA H100 (stand-in) (device 0; 1 visible), compute capability 9.0, 80.0 GiB; driver "
        "for CUDA 13.0, CuPy 14.2.0 for CUDA 13.0" in shown
    )
    assert "can't be used" not in shown


def test_facts_of_another_card(gpu, monkeypatch):
    cuda = gpu.xp.cuda
    monkeypatch.setattr(cuda.Device, "compute_capability", "120")
    monkeypatch.setattr(cuda.runtime, "driverGetVersion", lambda: 12090)
    monkeypatch.setattr(cuda.runtime, "runtimeGetVersion", lambda: 13100)
    properties = {"name": "Card", "totalGlobalMem": 5}
    monkeypatch.setattr(cuda.runtime, "getDeviceProperties", lambda _: properties)
    facts = cuda_facts(gpu.xp)
    assert facts["compute_capability"] == "12.0"
    assert (facts["driver"], facts["runtime"]) == ("12.9", "13.10")
    assert (facts["name"], facts["memory_bytes"]) == ("Card", 5)


def test_no_card(monkeypatch, capsys):
    monkeypatch.setattr("minicst.info.why_no_gpu", lambda: "no driver; [install] it")
    assert collect()["cuda"] == {"usable": False, "why_not": "no driver; [install] it"}
    assert collect()["devices"] == ["cpu"]
    assert main(["info"]) == 0
    assert "can't be used: no driver; [install] it" in capsys.readouterr().out


def test_without_cupy_as_a_program(tmp_path):
    """A fresh process, where `import cupy` finds nothing."""
    code = "import sys; sys.modules['cupy'] = None; from minicst.cli import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", code, "info", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0
    cuda = json.loads(done.stdout)["cuda"]
    assert not cuda["usable"]
    assert cuda["why_not"].startswith("CuPy isn't installed")

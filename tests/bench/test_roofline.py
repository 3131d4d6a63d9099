import pytest

from minicst.backend import NumpyBackend
from minicst.bench import Roofline
from minicst.bench import roofline as module


def test_the_best_is_kept_and_the_floor_is_macs_over_it(monkeypatch):
    monkeypatch.setattr(module, "SIDE", 64)
    monkeypatch.setattr(module, "COPY_BYTES", 1 << 20)
    roofline = Roofline(NumpyBackend(2))
    roofline.measure(2)
    roofline.measure(2)
    assert len(roofline.each) == 2
    assert roofline.gmacs == max(roofline.each) > 0
    assert roofline.copied > 0
    roofline.gmacs = 50.0
    assert roofline.floor(1e11) == pytest.approx(2.0)


def test_the_rate_counts_every_thread(monkeypatch):
    """Two threads, three products each of 64^3 multiply-adds, in a second."""
    monkeypatch.setattr(module, "SIDE", 64)
    monkeypatch.setattr(module, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(Roofline, "_best", lambda self, task, tries: 1.0)
    roofline = Roofline(NumpyBackend(2))
    roofline.measure()
    assert roofline.gmacs == pytest.approx(2 * 3 * 64**3 / 1e9)
    assert roofline.copied == pytest.approx(2 * 2 * (1 << 20) / 1e9)

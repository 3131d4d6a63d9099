import numpy as np
import pytest

from minicst.bench import BenchSettings, workloads
from minicst.bench.paper import ROWS, row_of
from minicst.bench.settings import SHARES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"networks": ("resnet21",)}, "unknown network 'resnet21'"),
        ({"networks": ()}, "--networks"),
        ({"pairs": 0}, "--pairs 0"),
        ({"batch_size": 1}, "--batch-size 1"),
        ({"threads": 0}, "--threads 0"),
        ({"shares": (0.0,)}, "--shares 0"),
        ({"shares": (101.0,)}, "--shares 101"),
        ({"shares": (float("nan"),)}, "--shares nan"),
        ({"width": 0.0}, "width"),
        ({"torch_python": "/no/such/python"}, "--torch-python"),
        ({"jax_python": "/no/such/python"}, "--jax-python"),
        ({"networks": ("vgg-tiny",), "shares": (0.01,)}, "the keep rate must be at least"),
    ],
)
def test_impossible_settings_are_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        workloads(BenchSettings(**options))
    assert "\n" not in str(error.value)


def test_no_interpreter_is_needed_for_a_peer_that_is_not_wanted():
    settings = BenchSettings(("vgg-tiny",), peers=(), torch_python="/no/such/python")
    assert len(workloads(settings)) == 1


def test_widths_are_those_of_the_papers_tables():
    by_name = {w.name: w for w in workloads(BenchSettings(batch_size=2))}
    assert {name: w.options["width"] for name, w in by_name.items()} == {
        "vgg19": 1.0,
        "resnet32": 2.0,
        "resnet20": 1.0,
    }
    assert by_name["resnet32"].build().channels("stem") == 32
    assert by_name["resnet32"].label == "resnet32 x2"
    (given,) = workloads(BenchSettings(("resnet32",), width=0.5, batch_size=2))
    assert given.build().channels("stem") == 8


def test_keep_rates_hit_their_shares():
    """vgg-tiny, by hand: the first layer's MACs fall as rho, inner ones as rho^2."""
    (workload,) = workloads(BenchSettings(("vgg-tiny",), batch_size=2))
    first, inner, last = 1024 * 9 * 3 * 16, 1024 * 9 * 16 * 32 + 256 * 9 * 32 * 32, 320
    assert tuple(workload.keep_rates) == SHARES
    for share, rho in workload.keep_rates.items():
        macs = (first + last) * rho + inner * rho**2
        assert 100 * macs / (first + inner + last) == pytest.approx(share, abs=1e-6)


def test_every_network_gets_the_same_images():
    one, two = workloads(BenchSettings(("vgg-tiny", "vgg-small"), batch_size=3, seed=5))
    assert one.batch is two.batch
    assert one.batch.images.shape == (3, 32, 32, 3)
    assert one.batch.images.dtype == np.float32
    assert one.batch.labels.max() < 10


def test_the_papers_rows_agree_with_themselves():
    """Table 4 prints the ratio of Table 5's minutes, cut or rounded to two decimals."""
    for row in ROWS:
        assert 21.85 / (row.forward + row.backward) == pytest.approx(row.saving, abs=0.01)
        assert row.train_cost == pytest.approx(0.75 / (row.macs / 100), rel=0.015)
    assert row_of("vgg19", 4.94).saving == 4.50
    assert row_of("vgg19", 5.0) is None
    assert row_of("resnet32", 4.94) is None

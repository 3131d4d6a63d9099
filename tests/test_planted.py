from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from minicst import planted
from minicst.autograd import Tensor
from minicst.job import plant
from minicst.models import build
from minicst.nn import ChannelNoise, clone
from minicst.planted import METHODS, PlantedSettings, good_channels, good_share, run_planted
from minicst.settings import TrainSettings
from minicst.sparse import cut, masked


def planted_network(seed=3):
    network = build("vgg-tiny", in_channels=1, seed=seed)
    plant(network, seed)
    return network


def test_half_of_every_units_channels_are_noise():
    network = planted_network()
    for unit in network.units().values():
        if unit.group is None:
            assert unit.noise is None
        else:
            assert unit.noise.bad.sum() == unit.transform.c_out // 2
    good = good_channels(network)
    assert good.shape == (80,)
    assert good.sum() == 40
    assert not np.array_equal(good, good_channels(planted_network(seed=4)))


def test_good_share():
    assert good_share(np.array([0.5, 1.0, 0.5]), np.array([True, False, True])) == 0.5


def test_good_channels_by_hand():
    network = build("vgg-tiny", in_channels=1, width=0.25)
    first, second, third = network.groups
    by_group = {unit.group: unit for unit in network.units().values() if unit.group is not None}
    sizes = [by_group[group].transform.c_out for group in network.groups]
    assert sizes == [4, 8, 8]
    for group, bad in ((first, [0, 3]), (third, [7])):
        flags = np.isin(np.arange(by_group[group].transform.c_out), bad)
        by_group[group].noise = ChannelNoise(0, group, flags, np.arange(flags.size))
    good = good_channels(network)
    assert np.flatnonzero(~good).tolist() == [0, 3, 19]  # 0 + 0, 0 + 3, 4 + 8 + 7
    assert good[network.groups[second]].all()
    assert good_share(np.full(20, 0.5), good) == pytest.approx(17 / 20)
    keep_prob = np.zeros(20)
    keep_prob[[0, 1, 19]] = [0.25, 1.0, 0.75]
    assert good_share(keep_prob, good) == pytest.approx(0.5)


def test_noise_depends_on_seed_step_layer_and_channel_alone():
    shape, bad = (2, 3, 3, 4), np.array([True, False, True, True])
    z = Tensor(np.ones(shape))

    def drawn(seed=1, layer="conv1", step=5, channels=(0, 1, 2, 3), live=None):
        return ChannelNoise(seed, layer, bad, channels)(z, step, live).data

    first = drawn()
    assert np.array_equal(drawn(), first)
    assert np.array_equal(first[..., 1], np.ones(shape[:-1]))
    for other in (drawn(seed=2), drawn(layer="conv2"), drawn(step=6), drawn(channels=(9, 8, 7, 6))):
        assert not (other[..., bad] == first[..., bad]).any()
    # Without channel 0 the others keep their noise, whether it is cut away or only absent.
    keep = np.array([False, True, True, True])
    narrow = ChannelNoise(1, "conv1", bad, range(4)).narrow(keep)
    cut_away = narrow(Tensor(np.ones((2, 3, 3, 3))), 5, None).data
    assert np.array_equal(cut_away, first[..., keep])
    absent = drawn(live=keep)
    assert np.array_equal(absent[..., keep], first[..., keep])
    assert not absent[..., 0].any()


def test_noise_is_the_same_in_both_passes_cut_and_masked_and_new_each_step():
    network = planted_network().astype(np.float64)
    mask = np.random.default_rng(0).random(80) < 0.5
    x = np.random.default_rng(1).normal(size=(4, 8, 8, 1))
    sub, form = cut(network, mask), masked(clone(network), mask)
    first = sub(x, training=True, step=5).data
    np.testing.assert_allclose(form(x, training=True, step=5).data, first, rtol=1e-10)
    assert np.array_equal(cut(network, mask)(x, training=True, step=5).data, first)
    assert not np.allclose(sub(x, training=True, step=6).data, first)


def test_no_gradient_passes_a_noisy_channel():
    network = planted_network().astype(np.float64)
    x = np.random.default_rng(1).normal(size=(4, 8, 8, 1))
    network(x, training=True).sum().backward()
    unit = network.units()["conv1"]
    assert not unit.transform.weight.grad[unit.noise.bad].any()
    assert unit.transform.weight.grad[~unit.noise.bad].any()


def test_run_planted_returns_every_method():
    results = run_planted(PlantedSettings(epochs=1, seeds=1, threads=1, width=0.5, limit=130))
    assert set(results["methods"]) == set(METHODS)
    assert results["base_share"] == 0.5
    for result in results["methods"].values():
        assert set(result["good_share"]) == {"mean", "sd", "values"}
        assert 0.0 <= result["good_share"]["mean"] <= 1.0
        assert 0.0 <= result["test_accuracy"]["mean"] <= 1.0


def test_every_option_that_train_has_too_reaches_the_training(monkeypatch):
    values = {
        **{"network": "vgg-small", "data": "shapes32", "data_dir": Path("here"), "verify": False},
        **{"limit": 500, "width": 0.75, "keep_rate": 0.3, "keep_prob_lr": 0.7, "epochs": 3},
        "threads": 3,
    }
    shared = {f.name for f in fields(PlantedSettings)} & {f.name for f in fields(TrainSettings)}
    assert shared - {"debug", "out"} == values.keys()
    assert not values.items() & asdict(PlantedSettings()).items()

    def caught(settings):
        for name, value in values.items():
            assert getattr(settings, name) == value, name
        raise KeyboardInterrupt

    monkeypatch.setattr(planted, "prepare", caught)
    with pytest.raises(KeyboardInterrupt):
        run_planted(PlantedSettings(**values))


def test_a_planted_run_of_a_narrow_network_on_few_images():
    settings = PlantedSettings(
        **{"epochs": 1, "seeds": 1, "threads": 1, "width": 0.5, "limit": 130, "keep_rate": 0.5},
        methods=("vr-pge",),
    )
    results = run_planted(settings)
    assert (results["width"], results["limit"]) == (0.5, 130)


@pytest.mark.slow
def test_the_estimator_and_not_luck_finds_the_good_channels():
    """In a network of fully connected layers, which learns it in a fifth of vgg-tiny's time."""
    settings = PlantedSettings(
        **{"network": "mlp", "width": 0.25, "epochs": 20, "keep_prob_lr": 0.03, "seeds": 5},
        methods=("vr-pge", "pge", "coin"),
        threads=1,
    )
    results = run_planted(settings)["methods"]
    share = {label: result["good_share"]["mean"] for label, result in results.items()}
    # Seeds 10-17 gave .83, .52 and .48, with standard deviations of .10, .12 and .15 a seed, and on
    # another CPU a run is a fresh draw: five seeds break the second bound in about 0.1 % of draws,
    # the others more rarely.
    assert share["vr-pge"] > share["pge"]
    assert share["vr-pge"] > share["coin"] + 0.1
    assert share["vr-pge"] > 0.6

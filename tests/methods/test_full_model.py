"""A full model away from the device gives the numbers of an ordinary run, bit for bit."""

import threading

import numpy as np
import pytest
import strict_cupy

from minicst.backend import cpu_backend, get_backend, using
from minicst.backend.disk_backend import DiskBackend
from minicst.data import Batch
from minicst.methods.base import Hyper, Plan
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.full_model import FullModel
from minicst.models import build
from minicst.sparse.subnetwork import Subnetwork, cut

SHAPE = (16, 16, 3)
STEPS = 7  # with blocks of 3: two whole ones and a part
NETWORKS = {
    "vgg-small": {},
    "resnet20": {"residual": "independent", "shortcut": "A"},
    "mobilenetv1": {},
    "mlp": {"linear_masks": "weights"},
}


def batches(n=6, seed=1):
    rng = np.random.default_rng(seed)
    for i in range(STEPS):
        images = rng.normal(size=(n, *SHAPE)).astype(np.float32)
        yield Batch(i, images, rng.integers(0, 5, n))


def network_of(home, name):
    with using(home):
        return build(
            name=name,
            num_classes=5,
            in_channels=3,
            width=0.25,
            image_size=SHAPE[0],
            seed=3,
            **NETWORKS[name],
        )


def run(home, device, name="vgg-small", watch=lambda method, step: None, **hyper):
    """Train; return losses, keep_prob and the full state at the end."""
    numbers = Hyper(**{"lr": 0.05} | hyper)
    method = CompletelySparse(network_of(home, name), numbers, Plan(50, 50, 6, SHAPE), device)
    losses = []
    for step, batch in enumerate(batches()):
        losses.append(method.train_step(batch).losses)
        watch(method, step)
    return losses, method.state(), method


def same(a, b):
    assert a.keys() == b.keys()
    # An ordinary run of T = 1 has pasted its sub-network, another one still holds it.
    return [key for key in a if key != "mask" and not np.array_equal(a[key], b[key])]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_equal_to_the_ordinary_run(name, every):
    device = get_backend()
    losses, state, _ = run(device, None, name, resample_every=every)
    host_losses, host_state, method = run(cpu_backend(), device, name, resample_every=every)
    assert host_losses == losses
    assert same(state, host_state) == []
    assert isinstance(method.full, FullModel)
    assert method.full.elsewhere
    assert method.backend is device
    assert method.network.backend is cpu_backend()


@pytest.mark.parametrize(
    "hyper",
    [
        {"optimizer": "adam", "lr": 1e-3},
        {"estimator": "vr-pge-multi", "n_masks": 3},
        {"estimator": "pge"},
        {"nesterov": True, "weight_decay": 0.01, "clip_norm": 0.5},
    ],
    ids=lambda hyper: next(iter(hyper.values())),
)
def test_equal_with_other_optimizers_and_estimators(hyper):
    device = get_backend()
    hyper = {"resample_every": 3} | hyper
    losses, state, _ = run(device, None, **hyper)
    host_losses, host_state, _ = run(cpu_backend(), device, **hyper)
    assert host_losses == losses
    assert same(state, host_state) == []


@pytest.mark.parametrize("every", [1, 3])
def test_equal_with_the_full_model_on_disk(tmp_path, every):
    device = get_backend()
    losses, state, _ = run(device, None, resample_every=every)
    disk = DiskBackend(tmp_path)
    disk_losses, disk_state, method = run(disk, device, resample_every=every)
    assert disk_losses == losses
    assert same(state, disk_state) == []
    held = [*method.network.state().values()]
    held += [a for state in method.optimizer.state.values() for a in state.values()]
    assert len(disk.files) == len(held)  # all of it is in files


@pytest.mark.parametrize("ends", [(0, 1, 4), (2, 5)], ids=["within", "between"])
@pytest.mark.parametrize("every", [1, 3])
def test_an_epoch_may_end_anywhere(every, ends):
    """The full model is brought up to date within a block, which goes on, or at its end.

    At its end the next sub-networks are there already, from before.
    """
    device = get_backend()
    _, state, _ = run(device, None, resample_every=every)
    seen = []

    def watch(method, step):
        if step in ends:
            method.end_epoch()
            seen.append(method.network.state()["conv1.transform.weight"].copy())

    _, host_state, _ = run(cpu_backend(), device, watch=watch, resample_every=every)
    assert same(state, host_state) == []
    assert not np.array_equal(seen[0], seen[1])  # what was written had been trained


def test_the_next_sub_networks_are_gathered_beside_the_training():
    threads = []
    method = CompletelySparse(
        network_of(cpu_backend(), "vgg-small"),
        Hyper(resample_every=3),
        Plan(50, 50, 6, SHAPE),
        get_backend(),
    )
    inner = method.full.open

    def opened(mask, with_optimizer):
        threads.append(threading.current_thread().name)
        return inner(mask, with_optimizer)

    method.full.open = opened
    for batch in batches():
        method.train_step(batch)
    assert len(threads) == 2  # of the first block; the others were there already
    method.end_epoch()
    assert method.full.bytes_in > method.full.bytes_out > 0


def test_other_masks_than_those_gathered_ahead_are_cut_anew():
    device = get_backend()

    def change(method, step):
        if step == 1:  # within a block, so that the next masks are other ones
            method.keep_prob[...] = np.linspace(0.3, 0.7, method.keep_prob.size)

    _, state, _ = run(device, None, watch=change, resample_every=3)
    _, host_state, _ = run(cpu_backend(), device, watch=change, resample_every=3)
    assert same(state, host_state) == []


def test_an_error_beside_the_training_reaches_the_caller(monkeypatch):
    method = CompletelySparse(
        network_of(cpu_backend(), "vgg-small"),
        Hyper(resample_every=2),
        Plan(50, 50, 6, SHAPE),
        get_backend(),
    )
    steps = batches()
    method.train_step(next(steps))

    def write(sub, position, after):
        raise OSError("no space left")

    method.full.write = write
    method.train_step(next(steps))
    method.train_step(next(steps))  # the write is asked for here
    with pytest.raises(OSError, match="no space left"):
        method.end_epoch()


@pytest.mark.parametrize("hyper", [{"mask_position": "filter"}, {"backward_masks": 2}])
def test_what_needs_the_whole_network_is_refused(hyper):
    network = network_of(cpu_backend(), "vgg-small")
    with pytest.raises(ValueError, match="full model that isn't on the device"):
        CompletelySparse(network, Hyper(**hyper), Plan(50, 50, 6, SHAPE), get_backend())


def masks_of(network, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(network.n_maskable) < 0.6
    for place in network.groups.values():
        mask[place.start] = True
    return mask


@pytest.mark.parametrize("name", NETWORKS)
def test_take_over_moves_what_both_have_and_nothing_else(name, rng):
    network = network_of(get_backend(), name)
    a, b = (cut(network, masks_of(network, seed)) for seed in (1, 2))
    full = network.host_state()
    news = {key: rng.normal(size=array.shape) for key, array in a.network.host_state().items()}
    a.network.load_state(news)
    b.take_over(a)
    b.paste()
    got = network.host_state()
    places = {}
    for which, sub in (("a", a), ("b", b)):
        for key, block in sub.blocks.items():
            inside = np.zeros(full[key].shape, bool)
            if len(block.shape) == 1 and inside.ndim > 1:
                inside.reshape(-1)[block.rows] = True
            else:
                rows = slice(None) if block.rows is None else block.rows
                columns = slice(None) if block.columns is None else block.columns
                inside[rows] = True
                keep = np.zeros(inside.shape[-1] if inside.ndim > 1 else 1, bool)
                keep[columns if inside.ndim > 1 else slice(None)] = True
                inside = inside & keep if inside.ndim > 1 else inside
            places[which, key] = inside
    for key, before in full.items():
        both = places.get(("a", key), False) & places.get(("b", key), np.zeros(before.shape, bool))
        want = before.copy()
        if both.any():
            trained = np.zeros(before.shape, before.dtype)
            trained[places["a", key]] = news[key].astype(before.dtype).reshape(-1)
            want[both] = trained[both]
        np.testing.assert_array_equal(got[key], want, err_msg=key)


# What the stand-in's copies tell: they take effect only where they are waited for.


@pytest.fixture
def on_stand_in(device):
    if device != "stand-in":
        pytest.skip("asks the stand-in")


def test_copies_are_waited_for(on_stand_in, monkeypatch):
    monkeypatch.setattr(Subnetwork, "arrive", lambda self: None)
    with pytest.raises(strict_cupy.RaceError):
        test_equal_to_the_ordinary_run("vgg-small", 3)


def test_mutation_stale_entries_are_noticed(monkeypatch):
    monkeypatch.setattr(Subnetwork, "take_over", lambda self, other: None)
    with pytest.raises(AssertionError):
        test_equal_to_the_ordinary_run("vgg-small", 3)


@pytest.mark.parametrize("every", [1, 3])
def test_only_sub_networks_cross(on_stand_in, every):
    """To the device: images, labels, live slices, places of overlaps; back: losses, slices."""
    method = CompletelySparse(
        network_of(cpu_backend(), "vgg-small"),
        Hyper(resample_every=every),
        Plan(50, 50, 6, SHAPE),
        get_backend(),
    )
    steps = batches()
    method.train_step(next(steps))
    before = method.full.bytes_in, method.full.bytes_out
    with strict_cupy.recording() as log:
        for _ in range(every):
            method.train_step(next(steps))
        method.end_epoch()
    floats_in = sum(entry.bytes for entry in log.h2d if entry.dtype == np.float32)
    images = every * 6 * 16 * 16 * 3 * 4
    slices = method.full.bytes_in - before[0]
    assert floats_in >= images + slices
    wide = [entry for entry in log.h2d if entry.bytes > 4 * method.network.n_parameters()]
    assert all(entry.shape == (6, *SHAPE) for entry in wide)
    out = sum(entry.bytes for entry in log.d2h if entry.shape != ())
    assert out == method.full.bytes_out - before[1]

"""Cut == masked: outputs, gradients, updated weights, optimizer state, running statistics.

The masked form is the definition. Blocks are found here with np.ix_, not with the indices of the
code under test. Tolerances are relative to a tensor's largest magnitude.
"""

import tracemalloc

import numpy as np
import pytest
from arrays import host, to_device, traced_memory

import minicst.functional as F
from minicst.backend import get_backend
from minicst.models import ARCHITECTURES, build
from minicst.nn import INPUT, Add, ChannelNoise, Flatten, Network, Pool, Unit, clone
from minicst.optim import SGD, Adam
from minicst.sparse.accounting import count_macs
from minicst.sparse.liveness import propagate, repair
from minicst.sparse.masked_form import masked
from minicst.sparse.subnetwork import Subnetwork, cut

# name -> (width, side of the images): narrow and small, so that all of them run in seconds.
CHAINS = {
    "vgg-small": (0.5, 8),
    "vgg11": (0.0625, 32),
    "vgg16": (0.0625, 32),
    "vgg19": (0.0625, 32),
    "mlp": (0.25, 6),
    "mobilenetv1": (0.25, 64),
}
RESNETS = {
    "resnet20": (0.375, 8),
    "resnet32": (0.25, 8),
    "resnet56": (0.25, 8),
    "wrn-28-10": (0.03, 8),
    "resnet50": (0.0625, 64),
}
CASES = [(name, "tied", "B") for name in CHAINS] + [
    (name, residual, shortcut)
    for name in RESNETS
    for residual in ("tied", "independent")
    for shortcut in "AB"
    if shortcut == "B" or "shortcut" in ARCHITECTURES[name].takes
]
RESIDUAL = [case for case in CASES if case[0] == "resnet20"]
# On the stand-in resnet20 stands for the deeper ones, and one resnet50 for blocks of three.
DEEP = [
    case
    for case in CASES
    if case[0] in ("resnet32", "resnet56") or case[:2] == ("resnet50", "tied")
]
every_case = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.deep) if case in DEEP else case for case in CASES],
    ids="-".join,
)

OPTIMIZERS = {
    "sgd": lambda net: SGD(net, 0.05, momentum=0.9, weight_decay=5e-3),
    "nesterov": lambda net: SGD(net, 0.05, momentum=0.9, weight_decay=5e-3, nesterov=True),
    "plain": lambda net: SGD(net, 0.05),
    "adam": lambda net: Adam(net, 2e-3, weight_decay=5e-3),
}


def network_of(name, residual="tied", shortcut="B", dtype=np.float64, seed=0, width=None):
    own_width, side = (CHAINS | RESNETS)[name]
    options = {"residual": residual, "shortcut": shortcut, "image_size": side, "seed": seed}
    network = build(name, 5, width=width or own_width, **options)
    return stir(network, seed).astype(dtype), side


def stir(network, seed=0):
    """Give batch norm numbers that differ from channel to channel: a leak of beta then shows."""
    rng = np.random.default_rng(seed)
    for norm in network.norms().values():
        norm.gamma.data[...] = to_device(rng.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.data[...] = to_device(rng.normal(0.2, 0.5, norm.beta.shape))
        norm.running_mean[...] = to_device(rng.normal(0, 0.5, norm.gamma.shape))
        norm.running_var[...] = to_device(rng.uniform(0.5, 1.5, norm.gamma.shape))
    return network


def batch_of(side, n=4, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, side, side, 3)).astype(dtype), rng.integers(0, 5, n)


def random_mask(network, rate, rng):
    n = network.n_maskable
    return repair(network, rng.random(n) < rate, rng.random(n))[0]


def block(network, name, keep):
    """np.ix_ index of the live entries of an array "node.transform.weight", "node.norm.gamma"..."""
    node, _, array = name.rpartition(".")
    node = node.removesuffix(".transform").removesuffix(".norm")
    rows = keep[node]
    if array != "weight":
        return np.ix_(rows)
    weight = network.nodes[node].transform.weight
    window = [np.arange(size) for size in weight.shape[1:-1]]
    columns = keep[network.inputs[node][0]]
    if network.nodes[node].is_depthwise:
        columns = np.arange(1)
    return np.ix_(rows, *window, columns)


def assert_close(actual, wanted, tolerance, what, floor=0.0):
    actual, wanted = host(actual), host(wanted)
    assert actual.shape == wanted.shape, what
    scale = max(float(np.abs(wanted).max(initial=0.0)), floor, 1e-30)
    error = float(np.abs(actual - wanted).max(initial=0.0)) / scale
    assert error <= tolerance, f"{what}: {error:.2e} > {tolerance:.0e}"


def absent(full, index):
    """What `full` holds outside of a block."""
    outside = np.ones(full.shape, bool)
    outside[index] = False
    return full[outside]


def all_state(network, optimizer):
    state = {(name, ""): array.copy() for name, array in network.host_state().items()}
    for name, arrays in (host(optimizer.state) if optimizer else {}).items():
        state |= {(name, key): array.copy() for key, array in arrays.items()}
    return state


def compare(network, masks, optimizer, batch, tolerance=1e-10, grad_tolerance=None, step=0):
    """Train two copies of a network, one cut and one masked; compare everything at each step."""
    x, y = batch
    nets = network, clone(network)
    opts = [optimizer and optimizer(net) for net in nets]
    for number, mask in enumerate(masks, step):
        before = [all_state(net, opt) for net, opt in zip(nets, opts, strict=True)]
        sub, definition = cut(nets[0], mask, opts[0]), masked(nets[1], mask, opts[1])
        losses, outputs = [], []
        for form in (sub, definition):
            form.network.zero_grad()
            outputs.append(form(x, training=True, step=number))
            losses.append(F.cross_entropy(outputs[-1], y))
            losses[-1].backward()
        assert_close(*outputs, tolerance, "outputs")
        assert abs(losses[0].item() - losses[1].item()) <= tolerance * abs(losses[1].item())

        small = dict(sub.network.named_parameters())
        blocks = {name: block(nets[0], name, sub.keep_index) for name in sub.network.state()}
        # Some gradients are 0 but for rounding: batch norm undoes the scale of a single weight.
        grads = {name: host(p.grad) for name, p in nets[1].named_parameters()}
        floor = 1e-3 * max(np.abs(grad).max() for grad in grads.values())
        for name, whole in grads.items():
            if name in small:
                wanted, grad = whole[blocks[name]], small[name].grad
                assert_close(grad, wanted, grad_tolerance or tolerance, f"grad {name}", floor)
                assert not absent(whole, blocks[name]).any(), f"grad {name}, absent"
            else:
                assert not whole.any(), f"grad {name}, absent"
        if optimizer is None:
            return
        sub.optimizer.step()
        sub.paste()
        definition.update()
        after = [all_state(net, opt) for net, opt in zip(nets, opts, strict=True)]
        assert opts[0].steps == opts[1].steps == number - step + 1
        for key in before[0]:
            assert_close(after[0][key], after[1][key], tolerance, f"{key} after step {number}")
            outside = np.ones(before[0][key].shape, bool)
            if key[0] in blocks:
                outside[blocks[key[0]]] = False
            for old, new in zip(before, after, strict=True):
                same = old[key][outside], new[key][outside]
                np.testing.assert_array_equal(*same, err_msg=f"absent {key}")
        moved = [key for key, old in before[0].items() if not np.array_equal(after[0][key], old)]
        assert len(moved) > len(blocks) // 2  # the step did something


@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
@every_case
def test_three_updates_with_three_masks(case, optimizer):
    network, side = network_of(*case)
    rng = np.random.default_rng(7)
    masks = [random_mask(network, rate, rng) for rate in (0.7, 0.4, 0.15)]
    # Batch norm amplifies rounding by layer: the 27 of mobilenetv1 and the 53 of resnet50 leave
    # 1e-11 to 5e-10, by the seed of the masks and the order of BLAS's sums.
    deep = sum(unit.is_conv for unit in network.units().values()) > 20
    compare(network, masks, OPTIMIZERS[optimizer], batch_of(side), 1e-9 if deep else 1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "plain"])
@pytest.mark.parametrize("case", [CASES[0], *RESIDUAL], ids="-".join)
def test_other_optimizers(case, optimizer):
    network, side = network_of(*case)
    rng = np.random.default_rng(8)
    masks = [random_mask(network, rate, rng) for rate in (0.5, 0.3, 0.5)]
    compare(network, masks, OPTIMIZERS[optimizer], batch_of(side))


def same_side_of_every_relu(network, mask, x):
    """Whether no activation lies so close to 0 that the two forms round it to different sides."""
    positive = []
    for form, live in (
        (cut(network, mask), None),
        (masked(network, mask), propagate(network, mask)),
    ):
        seen = {}

        def look(name, out, seen=seen):
            seen[name] = int((out.numpy() > 0).sum())
            return out

        form.network(x, training=True, track=False, live=live, gate=look)
        positive.append(seen)
    return all(positive[1][name] == count for name, count in positive[0].items())


@every_case
def test_float32(case):
    # The narrowest networks amplify rounding most: few channels share it.
    width = {"wrn-28-10": 0.1, "resnet50": 0.25}.get(case[0], 0.5 if case[0] in RESNETS else 0.25)
    network, side = network_of(*case, dtype=np.float32, width=width)
    layers = sum(unit.is_conv for unit in network.units().values())
    mask = random_mask(network, 0.5, np.random.default_rng(3))
    side = max(side, 16) if case[0] in RESNETS else side
    # One ReLU that rounding puts on the other side moves a deep network's gradients by percents:
    # float32 differs as much from float64 there, in either form.
    batches = (batch_of(side, n=8, dtype=np.float32, seed=seed) for seed in range(1, 21))
    batch = next(b for b in batches if same_side_of_every_relu(network, mask, b[0]))
    compare(network, [mask], None, batch, 1e-5, 1e-5 if layers <= 16 else 5e-3)


@every_case
def test_eval_mode(case):
    network, side = network_of(*case)
    rng = np.random.default_rng(5)
    x, _ = batch_of(side)
    for rate in (0.6, 0.2):
        mask = random_mask(network, rate, rng)
        before = all_state(network, None)
        out = cut(network, mask)(x, training=False)
        assert_close(out, masked(network, mask)(x, training=False), 1e-10, "outputs")
        for key, array in all_state(network, None).items():
            np.testing.assert_array_equal(array, before[key])


def test_untracked_training_pass_leaves_running_statistics():
    network, side = network_of("resnet20")
    x, _ = batch_of(side)
    mask = random_mask(network, 0.5, np.random.default_rng(0))
    for form in (cut(network, mask), masked(network, mask)):
        before = all_state(form.network, None)
        tracked = clone(form.network)
        form(x, training=True, track=False)
        for key, array in all_state(form.network, None).items():
            np.testing.assert_array_equal(array, before[key])
        tracked(x, training=True)
        assert any(
            not np.array_equal(array, before[key])
            for key, array in all_state(tracked, None).items()
        )


def share_memory(a, b):
    """Whether two arrays do, which on a device begin alike if at all."""
    return np.shares_memory(a, b) if isinstance(a, np.ndarray) else a.data.ptr == b.data.ptr


@every_case
def test_all_ones_is_the_plain_network(case):
    network, side = network_of(*case)
    x, y = batch_of(side)
    sub = cut(network, np.ones(network.n_maskable))
    if case[2] == "B":  # a padded shortcut loses its zero channels
        assert sub.network.spec() == network.spec()
    for (name, small), full in zip(
        sub.network.state().items(), network.state().values(), strict=True
    ):
        np.testing.assert_array_equal(host(small), host(full), err_msg=name)
        assert not share_memory(small, full)
    plain = clone(network)
    for form, run in ((sub.network, sub), (plain, plain)):
        F.cross_entropy(run(x, training=True), y).backward()
        assert all(parameter.grad is not None for parameter in form.parameters())
    for (name, small), full in zip(sub.network.named_parameters(), plain.parameters(), strict=True):
        assert_close(small.grad, full.grad, 1e-12, name)
    compare(network, [np.ones(network.n_maskable)], OPTIMIZERS["sgd"], batch_of(side))


# Special masks


def off(network, mask, *groups):
    mask = mask.copy()
    for group in groups:
        mask[network.groups[group]] = False
    return mask


@pytest.mark.parametrize("case", RESIDUAL, ids="-".join)
def test_empty_branches(case):
    network, side = network_of(*case)
    inner = [group for group in network.groups if group.endswith("conv1")]
    rng = np.random.default_rng(2)
    some = off(network, random_mask(network, 0.6, rng), *inner[::2])
    every = off(network, random_mask(network, 0.6, rng), *inner)
    masks = [repair(network, mask, np.ones(mask.size))[0] for mask in (some, every)]
    small = cut(network, masks[1]).network
    assert not any(name.endswith(("conv1", "conv2")) for name in small.nodes)
    compare(network, masks, OPTIMIZERS["sgd"], batch_of(side))


@pytest.mark.parametrize("shortcut", "AB")
def test_empty_second_convolution_silences_the_first(shortcut):
    network, side = network_of("resnet20", "independent", shortcut)
    mask = off(network, np.ones(network.n_maskable, bool), "stage2.block2.conv2")
    sub = cut(network, mask)
    assert "stage2.block2.conv1" not in sub.network.nodes  # nothing reads it
    assert sub.network.inputs["stage2.block2.add"] == ("stage2.block1.add",)
    compare(network, [mask], OPTIMIZERS["sgd"], batch_of(side))


@pytest.mark.parametrize("case", RESIDUAL, ids="-".join)
def test_dead_stream_channels(case):
    network, side = network_of(*case)
    mask = np.ones(network.n_maskable, bool)
    dead = [1, 4]
    for name, node in network.nodes.items():
        if node.group and not name.endswith("conv1"):
            mask[np.arange(mask.size)[network.groups[node.group]][dead]] = False
    sub = cut(network, mask)
    assert not set(dead) & set(sub.keep_index["stage1.block2.add"].tolist())
    assert sub.network.channels("stem") == network.channels("stem") - 2
    compare(network, [mask, np.ones(mask.size)], OPTIMIZERS["sgd"], batch_of(side))


def test_writers_of_a_stream_with_different_channels():
    network, side = network_of("resnet20", "independent", "B")
    mask = np.ones(network.n_maskable, bool)
    numbers = np.arange(mask.size)
    mask[numbers[network.groups["stem"]][[0, 1, 2]]] = False
    mask[numbers[network.groups["stage1.block1.conv2"]][[2, 3]]] = False
    sub = cut(network, mask)
    add = sub.network.nodes["stage1.block1.add"]
    # Channel 2 has no writer before block 2; places count within the union 0 1 3 4 5.
    assert sub.keep_index["stage1.block1.add"].tolist() == [0, 1, 3, 4, 5]
    assert add.places == [[0, 1, 3, 4], [2, 3, 4]]
    compare(network, [mask], OPTIMIZERS["sgd"], batch_of(side))


def test_channel_without_a_live_reader():
    # The padded shortcut of a tied network drops channel 2, and the branch beside it is empty.
    network, side = network_of("resnet20", "tied", "A")
    mask = off(network, np.ones(network.n_maskable, bool), "stage2.block1.conv1")
    mask[network.groups["stage2"].start + 2] = False
    sub = cut(network, mask)
    assert 2 not in sub.keep_index["stage1.block3.conv2"]
    assert 2 in sub.keep_index["stage1.block2.add"]  # stage1.block3.conv1 reads it
    assert sub.network.nodes["stage1.block3.conv2"].members == [0, 1, 3, 4, 5]
    assert sub.network.groups["stage1"] == slice(0, network.channels("stem"))
    compare(network, [mask, mask], OPTIMIZERS["sgd"], batch_of(side))


@pytest.mark.parametrize("case", [CASES[0], CASES[4], *RESIDUAL], ids="-".join)
def test_single_live_channels(case):
    network, side = network_of(*case)
    mask = np.zeros(network.n_maskable, bool)
    for place in network.groups.values():
        mask[place.start + 1] = True
    sub = cut(network, mask)
    assert {unit.transform.c_out for unit in sub.network.units().values()} == {1, 5}
    compare(network, [mask], OPTIMIZERS["nesterov"], batch_of(side))


def odd_network():
    """What no named network has: average pooling, flatten after a convolution, depthwise, bias."""
    rng = np.random.default_rng(0)
    network = Network("odd", 3)
    at = network.add("a", Unit.create(3, 6, 3, padding=1, bias=True, group="a", rng=rng), INPUT)
    at = network.add("depth", Unit.create(6, 6, 3, padding=1, groups=6, group="a", rng=rng), at)
    at = network.add("avg", Pool("avg", 2), at)
    plain = Unit.create(6, 6, 1, bias=True, norm=False, group="b", rng=rng)
    branch = network.add("b", plain, at)
    at = network.add("add", Add(6, relu=False), branch, at)
    at = network.add("flatten", Flatten(9), at)
    at = network.add("fc", Unit.create(54, 7, bias=True, group="fc", rng=rng), at)
    network.add("out", Unit.create(7, 5, bias=True, norm=False, relu=False, rng=rng), at)
    return stir(network).astype(np.float64)


def test_odd_network():
    network = odd_network()
    for unit in network.units().values():
        if unit.transform.bias is not None:
            bias = np.random.default_rng(4).normal(size=unit.transform.c_out)
            unit.transform.bias.data[...] = to_device(bias)
    rng = np.random.default_rng(1)
    masks = [random_mask(network, rate, rng) for rate in (0.8, 0.5, 0.3)]
    compare(network, masks, OPTIMIZERS["sgd"], batch_of(6))


def test_convolution_in_groups_is_refused():
    network = Network("grouped", 4)
    at = network.add("a", Unit.create(4, 4, 3, padding=1, groups=2, group="a"), INPUT)
    network.add("b", Unit.create(4, 2, 1), at)
    with pytest.raises(ValueError, match="2 groups can't be cut by channel"):
        cut(network, np.array([1, 0, 1, 1]))


@pytest.mark.parametrize("case", [CASES[0], CASES[2], *RESIDUAL], ids="-".join)
def test_planted_noise(case):
    network, side = network_of(*case)
    rng = np.random.default_rng(6)
    for name, unit in network.units().items():
        if unit.group and rng.random() < 0.6:
            c = unit.transform.c_out
            unit.noise = ChannelNoise(11, name, rng.random(c) < 0.4, np.arange(c))
    masks = [random_mask(network, rate, rng) for rate in (0.7, 0.3)]
    x, _ = batch_of(side)
    sub = cut(network, masks[0])
    first, again, later = (sub(x, True, False, step).numpy() for step in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - later).max() > 1e-3
    compare(network, masks, OPTIMIZERS["sgd"], batch_of(side), step=40)


# Cut of a cut network


def kept_of_groups(network, sub):
    """Number in the full mask of each maskable channel of a cut network."""
    numbers = np.arange(network.n_maskable)
    kept = []
    for group in sub.network.groups:
        nodes = [name for name in sub.network.nodes if network.nodes[name].group == group]
        own = [network.own(name, numbers)[sub.keep_index[name]] for name in nodes]
        kept.append(np.unique(np.concatenate(own)))
    return np.concatenate(kept)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4], *RESIDUAL], ids="-".join)
def test_cut_of_a_cut_network(case):
    network, side = network_of(*case)
    rng = np.random.default_rng(9)
    x, y = batch_of(side)
    for outer_rate, inner_rate in ((0.7, 0.6), (0.4, 0.5), (0.3, 0.2)):
        inner = random_mask(network, outer_rate * inner_rate, rng)
        outer = inner | (rng.random(inner.size) < outer_rate)
        net_a, net_b = clone(network), clone(network)
        opt_a, opt_b = OPTIMIZERS["sgd"](net_a), OPTIMIZERS["sgd"](net_b)
        first = cut(net_a, outer, opt_a)
        kept = kept_of_groups(net_a, first)
        assert first.network.n_maskable == kept.size
        second = cut(first.network, inner[kept], first.optimizer)
        direct = cut(net_b, inner, opt_b)
        # Groups lose the channels that were dead, so only "members" may differ from spec to spec.
        assert list(second.network.state()) == list(direct.network.state())
        for sub in (second, direct):
            F.cross_entropy(sub(x, training=True), y).backward()
            sub.optimizer.step()
            sub.paste()
        first.paste()
        wanted = net_b.state()
        for name, array in net_a.state().items():
            assert_close(array, wanted[name], 1e-12, name)
        # A cut network is an ordinary one: spec, clone and repr work, and it can be masked.
        copy = clone(first.network)
        assert copy.spec() == first.network.spec()
        assert repr(copy) == repr(first.network)
        compare(copy, [inner[kept]], OPTIMIZERS["sgd"], batch_of(side))


def test_tied_group_whose_nodes_keep_different_channels():
    network, _ = network_of("resnet20", "tied", "A")
    mask = np.ones(network.n_maskable, bool)
    mask[network.groups["stage2"].start + 1] = False
    small = cut(network, mask).network
    # Channels 0 2 3 4 5 are padded with 6 ... 11, which the convolutions write.
    assert small.nodes["stage2.block1.shortcut"].members == [0, 1, 2, 3, 4]
    assert small.nodes["stage2.block1.conv2"].members is None
    place = small.groups["stage2"]
    assert place.stop - place.start == 11
    numbers = np.arange(small.n_maskable)
    assert small.own("stage2.block1.shortcut", numbers).tolist() == numbers[place][:5].tolist()
    assert small.own("stage2.block1.conv2", numbers).tolist() == numbers[place].tolist()
    assert small.own("classifier", numbers) is None


# Errors and interface


def test_mask_that_lets_nothing_through():
    network, _ = network_of("vgg-small")
    mask = off(network, np.ones(network.n_maskable, bool), "conv3")
    with pytest.raises(ValueError, match=r"nothing reach the output of network vgg-small.*repair"):
        cut(network, mask)


@pytest.mark.parametrize("form", [cut, masked])
def test_mask_that_does_not_fit(form):
    network, _ = network_of("vgg-small")
    n = network.n_maskable
    with pytest.raises(ValueError, match=rf"shape \(3,\).*must have shape \({n},\)"):
        form(network, np.ones(3))
    for value in (0.5, np.nan, -1.0):
        with pytest.raises(ValueError, match="only 0 and 1"):
            form(network, np.full(n, value))


def test_cut_changes_nothing_before_paste():
    network, side = network_of("resnet20", "independent", "A")
    optimizer = OPTIMIZERS["adam"](network)
    before = all_state(network, optimizer)
    sub = cut(network, random_mask(network, 0.5, np.random.default_rng(0)), optimizer)
    x, y = batch_of(side)
    F.cross_entropy(sub(x, training=True), y).backward()
    sub.optimizer.step()
    for key, array in all_state(network, optimizer).items():
        np.testing.assert_array_equal(array, before[key])
    assert optimizer.steps == 0
    assert all(parameter.grad is None for parameter in network.parameters())
    sub.paste()
    assert optimizer.steps == 1


def test_cut_follows_the_optimizers_options():
    network, _ = network_of("vgg-small")
    optimizer = OPTIMIZERS["nesterov"](network)
    optimizer.lr, optimizer.steps = 0.0125, 17
    small = cut(network, np.ones(network.n_maskable), optimizer).optimizer
    assert type(small) is SGD
    assert small.options() == optimizer.options()
    assert (small.lr, small.steps) == (0.0125, 17)


def test_keep_index_and_mask_are_the_liveness():
    network, _ = network_of("resnet20")
    mask = random_mask(network, 0.4, np.random.default_rng(1))
    sub = cut(network, mask.astype(float))
    assert sub.mask.dtype == bool
    assert sub.mask.tolist() == mask.tolist()
    for name, live in propagate(network, mask).items():
        assert sub.keep_index[name].tolist() == np.flatnonzero(live).tolist()
        if name in sub.network.nodes:
            assert sub.network.channels(name) == live.sum()
        elif name != INPUT:
            assert not live.any()


# Mutations: with a rule broken, the comparison must fail.


def red(network, masks, side, optimizer="sgd"):
    with pytest.raises(AssertionError):
        compare(network, masks, OPTIMIZERS[optimizer], batch_of(side))


@pytest.fixture
def residual_case():
    network, side = network_of("resnet20", "independent", "B")
    rng = np.random.default_rng(12)
    return network, [random_mask(network, 0.5, rng) for _ in range(2)], side


def test_comparison_is_green_without_mutation(residual_case):
    network, masks, side = residual_case
    compare(network, masks, OPTIMIZERS["sgd"], batch_of(side))


def test_beta_leaks_without_the_indicator_after_batch_norm(residual_case):
    network, masks, side = residual_case
    x, _ = batch_of(side)
    for training in (True, False):
        out = cut(network, masks[0])(x, training, track=False).numpy()
        form = masked(network, masks[0], mask_position="filter")
        leaky = form(x, training, track=False).numpy()
        assert np.abs(out - leaky).max() > 1e-2 * np.abs(out).max()


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_mutation_index_shifted_by_one(residual_case, monkeypatch, axis):
    backend = get_backend()
    right = backend.entries

    def shifted(shape, rows, columns):
        if axis == "rows" and rows is not None and rows[-1] + 1 < shape[0]:
            rows = rows + 1
        if axis == "columns" and columns is not None and columns[-1] + 1 < shape[-1]:
            columns = columns + 1
        return right(shape, rows, columns)

    monkeypatch.setattr(backend, "entries", shifted)
    red(*residual_case)


def test_mutation_paste_forgets_the_optimizer(residual_case, monkeypatch):
    def paste(self):
        self.optimizer = None
        Subnetwork_paste(self)

    Subnetwork_paste = Subnetwork.paste
    monkeypatch.setattr(Subnetwork, "paste", paste)
    red(*residual_case)


def test_mutation_cut_starts_with_fresh_momentum(residual_case, monkeypatch):
    right = Subnetwork._fill

    def fill(self):
        right(self)
        for arrays in self.optimizer.state.values():
            for array in arrays.values():
                array[...] = 0

    monkeypatch.setattr(Subnetwork, "_fill", fill)
    red(*residual_case)


def test_mutation_places_of_an_add_ignored(residual_case, monkeypatch):
    right = Add.narrow

    def narrow(self, keep_inputs, keep_out, mask=None):
        small = right(self, keep_inputs, keep_out)
        small.places = [
            None if place is None else list(range(len(place))) for place in small.places
        ]
        return small

    monkeypatch.setattr(Add, "narrow", narrow)
    red(*residual_case)


def test_mutation_masked_update_moves_absent_entries(residual_case, monkeypatch):
    from minicst.sparse.masked_form import MaskedNetwork

    monkeypatch.setattr(MaskedNetwork, "update", lambda self: self.optimizer.step())
    red(*residual_case)


def test_mutation_noise_keyed_by_place_instead_of_channel(residual_case, monkeypatch):
    network, masks, side = residual_case
    for name, unit in network.units().items():
        c = unit.transform.c_out
        unit.noise = ChannelNoise(3, name, np.ones(c, bool), np.arange(c)) if unit.group else None

    def narrow(self, keep):
        return ChannelNoise(self.seed, self.layer, self.bad[keep], np.arange(keep.size))

    compare(network, masks, OPTIMIZERS["sgd"], batch_of(side))
    monkeypatch.setattr(ChannelNoise, "narrow", narrow)
    red(network, masks, side)


# Memory


def test_nothing_of_full_width_between_cut_and_paste(device):
    network = build("vgg11", 10)
    optimizer = SGD(network, 0.1, momentum=0.9)
    mask = np.zeros(network.n_maskable, bool)
    for place in network.groups.values():
        mask[place.start : place.stop : 16] = True
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    y = np.array([1, 2])
    big = [unit.transform.weight for unit in network.units().values() if unit.is_conv]
    full_width = min(weight.data.nbytes for weight in big if weight.shape[0] == 512)

    def step(form):
        F.cross_entropy(form(x, training=True), y).backward()
        if device != "cpu":
            return None  # a memory pool doesn't list its arrays
        traces = tracemalloc.take_snapshot().traces
        return max(trace.size for trace in traces)

    F.cross_entropy(cut(network, mask)(x, True, track=False), y).backward()  # workspaces exist now
    with traced_memory() as most:
        sub = cut(network, mask, optimizer)
        largest = step(sub)
        sub.optimizer.step()
        sub.paste()
        peak = most()
    with traced_memory() as most:
        definition = masked(network, mask)
        dense_largest = step(definition)
        dense_peak = most()
    count = count_macs(sub.network, (32, 32, 3))
    # Weights, gradients, momentum (4 bytes each) and flat indices (8): 20 bytes a parameter; the
    # tape's activations, and as much again in flight. The rest is Python's own objects.
    bound = 20 * count.params + 2 * 2 * count.activation_bytes + (256 << 10)
    assert peak < bound
    assert bound < full_width / 3
    assert dense_peak > full_width  # so the measure sees what the masked form allocates
    if device == "cpu":
        assert largest < full_width / 16
        assert dense_largest >= full_width

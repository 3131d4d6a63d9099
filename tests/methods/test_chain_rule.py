"""STE and Gumbel-softmax: dL/dm against finite differences, estimators against enumeration.

The oracles know nothing of the gates: a forward pass written out in NumPy with the mask where the
paper has it (before ReLU), the masked form of the network, sums over all masks, quadrature.
"""

import numpy as np
import pytest
from arrays import host, to_device

import minicst.functional as F
from minicst.autograd import Tensor
from minicst.backend import get_backend
from minicst.data import Batch
from minicst.methods.base import Hyper, Plan
from minicst.methods.chain_rule import (
    ChainRule,
    GumbelSoftmax,
    StraightThrough,
    gated,
    relaxed_mask,
)
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense
from minicst.models import build
from minicst.nn import INPUT, GlobalPool, Network, Unit, clone
from minicst.randomness import rng_for
from minicst.settings import TrainSettings
from minicst.sparse.accounting import chain_rule_macs, chain_rule_saving, count_macs
from minicst.sparse.liveness import propagate, repair
from minicst.sparse.masked_form import live_entries, masked
from minicst.sparse.masks import enumerate_masks

SIDE = 6
SHAPE = (SIDE, SIDE, 3)
CLASSES = 5


def network_of(name="vgg-tiny", width=0.25, dtype=np.float64, **options):
    network = build(name, CLASSES, width=width, image_size=SIDE, seed=1, **options)
    rng = np.random.default_rng(0)
    for unit in network.units().values():
        if unit.norm is not None:
            unit.norm.gamma.data[...] = to_device(rng.uniform(0.5, 1.5, unit.norm.gamma.shape))
            unit.norm.beta.data[...] = to_device(rng.normal(0.2, 0.5, unit.norm.beta.shape))
    return network.astype(dtype)


def one_layer(channels=4, dtype=np.float64):
    """One group of maskable channels, then pooling and the classifier: logits linear in m."""
    network = Network("one layer", 3)
    rng = np.random.default_rng(5)
    at = network.add("conv", Unit.create(3, channels, 3, padding=1, group="conv", rng=rng), INPUT)
    at = network.add("mean", GlobalPool(), at)
    classifier = Unit.create(channels, CLASSES, bias=True, norm=False, relu=False, rng=rng)
    network.add("classifier", classifier, at)
    beta = to_device(rng.normal(0.3, 0.5, channels))
    network.nodes["conv"].norm.beta.data[...] = beta
    return network.astype(dtype)


def batch_of(n=8, dtype=np.float64, seed=7):
    rng = np.random.default_rng(seed)
    return Batch(0, rng.normal(size=(n, *SHAPE)).astype(dtype), rng.integers(0, CLASSES, n))


def plan_of(steps=40, search=None):
    return Plan(steps, steps if search is None else search, 8, SHAPE)


def loss_of(network, mask, batch):
    """Cross-entropy under a mask, and its gradient by the mask; running statistics stay."""
    run = gated(network, mask)
    loss = F.cross_entropy(run(batch.images, True, track=False), batch.labels)
    loss.backward()
    return loss.item(), host(run.mask.grad).copy()


def random_mask(network, rate, seed=0):
    rng = np.random.default_rng(seed)
    n = network.n_maskable
    return repair(network, rng.random(n) < rate, rng.random(n))[0]


def differences(f, x, h=1e-5):
    """Central differences, one entry at a time."""
    found = np.empty(x.size)
    for i in range(x.size):
        step = h * (np.arange(x.size) == i)
        found[i] = (f(x + step) - f(x - step)) / (2 * h)
    return found


# dL/dm


def by_hand(network, mask, batch):
    """Loss of a vgg-tiny in NumPy: conv as a sum over taps, batch norm, mask, then ReLU."""
    x, at = batch.images, 0
    for name in ("conv1", "conv2", "pool1", "conv3"):
        if name == "pool1":
            n, h, w, c = x.shape
            x = x.reshape(n, h // 2, 2, w // 2, 2, c).max(axis=(2, 4))
            continue
        unit = network.nodes[name]
        weight = unit.transform.weight.numpy()
        n, h, w, _ = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        z = sum(
            padded[:, i : i + h, j : j + w] @ weight[:, i, j].T for i in range(3) for j in range(3)
        )
        if unit.transform.bias is not None:
            z = z + unit.transform.bias.numpy()
        centered = z - z.mean(axis=(0, 1, 2))
        z = centered / np.sqrt((centered**2).mean(axis=(0, 1, 2)) + unit.norm.eps)
        z = z * unit.norm.gamma.numpy() + unit.norm.beta.numpy()
        x = np.maximum(z * mask[at : at + z.shape[-1]], 0.0)
        at += z.shape[-1]
    head = network.nodes["classifier"].transform
    logits = x.mean(axis=(1, 2)) @ head.weight.numpy().T + head.bias.numpy()
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), batch.labels]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).mean())


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_gradient_of_the_mask_is_that_of_a_pass_written_out(kind):
    network, batch = network_of(), batch_of()
    mask = random_mask(network, 0.5).astype(float)
    if kind == "soft":
        mask = np.random.default_rng(2).uniform(0.05, 0.95, mask.size)
    loss, gradient = loss_of(network, mask, batch)
    assert loss == pytest.approx(by_hand(network, mask, batch), rel=1e-12)
    h = 1e-6  # small: no other ReLU or maximum may change sides
    pruned = np.flatnonzero(mask == 0.0)
    assert kind == "soft" or pruned.size > 4
    for c in range(mask.size):
        unit = h * (np.arange(mask.size) == c)
        # From the right, second order: a mask is never negative, and relu(m z) has a kink at 0.
        values = [by_hand(network, mask + k * unit, batch) for k in range(3)]
        wanted = (-3 * values[0] + 4 * values[1] - values[2]) / (2 * h)
        assert gradient[c] == pytest.approx(wanted, rel=1e-4, abs=1e-7), c
    # Eq. (1): a pruned channel's gradient isn't zero.
    assert kind == "soft" or (np.abs(gradient[pruned]) > 1e-6).mean() > 0.8


RESNETS = [(residual, shortcut) for residual in ("tied", "independent") for shortcut in "AB"]


@pytest.mark.parametrize(
    ("residual", "shortcut"),
    [pytest.param(*case, marks=[pytest.mark.deep] * (case in RESNETS[1:3])) for case in RESNETS],
)
def test_gradient_of_the_mask_on_residual_networks(residual, shortcut, device):
    """Tied groups have several writers; their gradients add up.

    At m = 0 the sums of a stream sit at ReLU's kink, so the differences are taken a little inside.
    """
    network = network_of("resnet20", 0.25, residual=residual, shortcut=shortcut)
    batch = batch_of(4)
    mask = np.ones(network.n_maskable)
    for place in network.groups.values():
        mask[place.start : place.stop : 2] = 0.0

    def f(m):
        run = gated(network, m)
        return F.cross_entropy(run(batch.images, True, track=False), batch.labels).item()

    _, gradient = loss_of(network, mask, batch)
    rng = np.random.default_rng(3)
    # The stand-in, which takes milliseconds a kernel, sees fewer entries.
    count = 12 if device == "stand-in" else 20
    some = np.concatenate(
        [rng.permutation(np.flatnonzero(mask == bit))[:count] for bit in (0.0, 1.0)]
    )
    for c in some:
        inside, step = np.maximum(mask, 1e-5), 2e-9 * (np.arange(mask.size) == c)
        wanted = (f(inside + step) - f(inside - step)) / 4e-9
        assert gradient[c] == pytest.approx(wanted, rel=1e-3, abs=2e-5), c
    pruned = some[mask[some] == 0.0]
    assert pruned.size > 10
    assert (np.abs(gradient[pruned]) > 1e-6).mean() > 0.7


def test_a_tied_entrys_gradient_is_the_sum_over_its_writers():
    """One mask for a stage, against one for every writer with equal entries."""
    tied = network_of("resnet20", 0.25)
    batch = batch_of(4)
    apart = build("resnet20", CLASSES, width=0.25, residual="independent", image_size=SIDE, seed=1)
    apart.astype(np.float64).load_state(tied.state())
    mask = random_mask(tied, 0.6)
    for place in tied.groups.values():
        mask[place.start] = True
    spread, owner = [], []  # each writer's entries, and where they come from in the tied mask
    for name, node in tied.nodes.items():
        if node.group is not None:
            owner.append(tied.own(name, np.arange(mask.size)))
            spread.append(apart.own(name, np.arange(apart.n_maskable)))
    wide = np.zeros(apart.n_maskable)
    wide[np.concatenate(spread)] = mask[np.concatenate(owner)]
    loss, gradient = loss_of(tied, mask, batch)
    same, parts = loss_of(apart, wide, batch)
    assert same == pytest.approx(loss, rel=1e-12)
    summed = np.zeros(mask.size)
    np.add.at(summed, np.concatenate(owner), parts[np.concatenate(spread)])
    np.testing.assert_allclose(gradient, summed, rtol=1e-9, atol=1e-12)


def depthwise_network():
    """A depthwise unit shares its producer's group; `members` leaves a shortcut's tail out."""
    network = Network("depthwise", 3)
    rng = np.random.default_rng(2)
    at = network.add("conv", Unit.create(3, 6, 3, padding=1, group="a", rng=rng), INPUT)
    own = Unit.create(6, 6, 3, padding=1, groups=6, group="a", rng=rng)
    at = network.add("depthwise", own, at)
    other = Unit.create(6, 6, 3, padding=1, groups=6, group="b", rng=rng)
    at = network.add("other", other, at)
    some = Unit.create(6, 2, 1, group="b", members=[1, 3], rng=rng)
    at = network.add("some", some, at)
    at = network.add("mean", GlobalPool(), at)
    head = Unit.create(2, CLASSES, bias=True, norm=False, relu=False, rng=rng)
    network.add("classifier", head, at)
    for unit in network.units().values():
        if unit.norm is not None:
            beta = rng.normal(0.5, 0.5, unit.norm.beta.shape)
            unit.norm.beta.data[...] = to_device(beta)
    return network.astype(np.float64)


NETWORKS = {
    "vgg-tiny": network_of,
    "mlp": lambda: network_of("mlp", 0.125),
    "depthwise": depthwise_network,
    **{
        f"resnet20 {residual} {shortcut}": lambda r=residual, s=shortcut: network_of(
            "resnet20", 0.25, residual=r, shortcut=s
        )
        for residual, shortcut in RESNETS
    },
}


@pytest.mark.parametrize("which", NETWORKS)
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_with_a_hard_mask_it_computes_the_masked_form(which, rate):
    """Logits, loss, gradients of the weights; at the low rate with empty residual branches."""
    network, batch = NETWORKS[which](), batch_of(4)
    for seed in range(4):
        mask = random_mask(network, rate, seed)
        form, ours = masked(network, mask), gated(network, mask)
        found = []
        for run in (form, ours):
            network.zero_grad()
            logits = run(batch.images, True, track=False)
            F.cross_entropy(logits, batch.labels).backward()
            grads = {name: host(p.grad).copy() for name, p in network.named_parameters()}
            found.append((logits.numpy(), grads))
        (wanted, grads), (logits, own_grads) = found
        np.testing.assert_allclose(logits, wanted, rtol=1e-9, atol=1e-9)
        live = live_entries(network, form.live)
        for name, grad in own_grads.items():
            np.testing.assert_allclose(grad, grads[name], rtol=1e-7, atol=1e-9, err_msg=name)
            # Frozen entries lose no gradient: TINY itself is 1e-24.
            assert np.abs(grad[~live[name]]).max(initial=0.0) < 1e-20, name


def test_a_pruned_depthwise_channel_gets_its_gradient():
    """Nothing live comes in where the shared mask is 0; the derivative is that a little inside."""
    network, batch = Network("depthwise", 3), batch_of(4)
    rng = np.random.default_rng(2)
    at = network.add("conv", Unit.create(3, 6, 3, padding=1, group="a", rng=rng), INPUT)
    depthwise = Unit.create(6, 6, 3, padding=1, groups=6, group="a", rng=rng)
    at = network.add("depthwise", depthwise, at)
    at = network.add("mean", GlobalPool(), at)
    head = Unit.create(6, CLASSES, bias=True, norm=False, relu=False, rng=rng)
    network.add("classifier", head, at)
    depthwise.norm.beta.data[...] = to_device(rng.uniform(0.2, 0.8, 6))
    network.astype(np.float64)
    mask, pruned = np.ones(6), np.array([1, 3, 4])
    mask[pruned] = 0.0
    _, gradient = loss_of(network, mask, batch)
    for c in pruned:
        inside, step = np.maximum(mask, 1e-6), 1e-9 * (np.arange(6) == c)
        above, below = (loss_of(network, inside + d, batch)[0] for d in (step, -step))
        assert gradient[c] == pytest.approx((above - below) / 2e-9, rel=0.05, abs=1e-5)
    assert np.abs(gradient[pruned]).min() > 1e-4


def test_an_empty_branch_adds_nothing_and_gets_no_gradient():
    network, batch = network_of("resnet20", 0.25, residual="independent"), batch_of(4)
    mask = np.ones(network.n_maskable)
    branch = "stage2.block2"
    mask[network.groups[f"{branch}.conv1"]] = 0.0
    run = gated(network, mask)
    assert list(run.unreached) == [f"{branch}.conv2"]
    _, gradient = loss_of(network, mask, batch)
    for conv in ("conv1", "conv2"):
        assert not gradient[network.groups[f"{branch}.{conv}"]].any()
    # Batch norm's beta behind the empty group reaches nothing.
    before = run(batch.images, True, track=False).numpy()
    network.nodes[f"{branch}.conv2"].norm.beta.data[...] += 3.0
    np.testing.assert_array_equal(run(batch.images, True, track=False).numpy(), before)


def test_with_hard_masks_no_gradient_passes_a_pruned_filter():
    """Its own mask gets a gradient from its filter; no entry of an earlier layer does."""
    network, batch = network_of(), batch_of()
    mask = random_mask(network, 0.5)
    _, gradient = loss_of(network, mask, batch)
    place = network.groups["conv3"]
    pruned = ~mask[place]
    weight = network.nodes["conv3"].transform.weight
    changed = weight.numpy().copy()
    changed[pruned] = np.random.default_rng(0).normal(size=changed[pruned].shape)
    weight.data[...] = to_device(changed)
    _, other = loss_of(network, mask, batch)
    np.testing.assert_array_equal(other[: place.start], gradient[: place.start])
    assert (other[place] != gradient[place])[pruned].all()
    np.testing.assert_array_equal(other[place][~pruned], gradient[place][~pruned])


def test_without_gates_a_network_is_what_it_was():
    network, batch = network_of("resnet20", 0.25, dtype=np.float32), batch_of(dtype=np.float32)
    plain = network(batch.images, training=True, track=False).numpy()
    ones = gated(network, np.ones(network.n_maskable))(batch.images, True, track=False).numpy()
    np.testing.assert_array_equal(plain, ones)


@pytest.mark.parametrize("mask", [np.ones(3), np.full(20, np.nan), -np.ones(20)])
def test_gated_refuses(mask):
    with pytest.raises(ValueError, match=r"mask of shape .*takes \(20,\) numbers >= 0"):
        gated(network_of(), mask)


# Relaxed masks

S = np.array([0.05, 0.3, 0.5, 0.7, 0.999])
TEMPERATURES = [0.2, 2 / 3, 1.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_relaxed_mask_exceeds_one_half_with_probability_s(temperature):
    """m falls with U and is 1/2 at U = s, so {m > 1/2} = {U < s}."""
    at, _ = relaxed_mask(S, S, temperature)
    np.testing.assert_allclose(at, 0.5, rtol=1e-12)
    grid = np.concatenate([S - 1e-9, S + 1e-9, np.linspace(0.0, 1.0, 201)])
    for s in S:
        u = np.sort(grid[np.abs(grid - s) > 1e-12].clip(0.0, 1.0))
        mask, _ = relaxed_mask(np.full(u.size, s), u, temperature)
        assert (np.diff(mask) <= 0.0).all()
        np.testing.assert_array_equal(mask > 0.5, u < s)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_relaxed_mask_has_the_density_of_the_binary_concrete_distribution(temperature):
    """Source of the density: Maddison et al. (2017), App. B: with odds a = s / (1 - s),
    p(x) = T a x^(-T-1) (1-x)^(-T-1) / (a x^-T + (1-x)^-T)^2."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    for s in (0.05, 0.3, 0.5, 0.7, 0.8):
        odds = s / (1.0 - s)
        levels = np.linspace(0.9, 0.1, 9)
        x, _ = relaxed_mask(np.full(9, s), levels, temperature)
        ends = np.log(x) - np.log1p(-x)  # over the logit, where nothing is steep
        for i in range(8):
            half = (ends[i + 1] - ends[i]) / 2
            t = 1 / (1 + np.exp(-(ends[i] + half * (1 + nodes))))
            density = temperature * odds * (t * (1 - t)) ** -temperature
            density /= (odds * t**-temperature + (1 - t) ** -temperature) ** 2
            assert (weights * density).sum() * half == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_slope_of_the_relaxed_mask(temperature):
    rng = np.random.default_rng(1)
    s, u, h = rng.uniform(0.02, 0.98, 50), rng.random(50), 1e-6
    above, below = (relaxed_mask(s + d, u, temperature)[0] for d in (h, -h))
    _, slope = relaxed_mask(s, u, temperature)
    np.testing.assert_allclose(slope, (above - below) / (2 * h), rtol=1e-6, atol=1e-9)
    assert (slope > 0.0).all()


def test_relaxed_mask_where_a_channel_is_decided():
    u = np.array([0.0, 0.2, 0.9, 1.0])
    for s in (0.0, 1.0):
        mask, slope = relaxed_mask(np.full(4, s), u, 2 / 3)
        np.testing.assert_array_equal(mask, s)
        np.testing.assert_array_equal(slope, 0.0)
    # T = 1: m = s e^l / (1 - s + s e^l), so dm/ds is e^l at 0 and e^-l at 1.
    odds = (1 - u[1:3]) / u[1:3]
    np.testing.assert_allclose(relaxed_mask(np.zeros(2), u[1:3], 1.0)[1], odds, rtol=1e-9)
    np.testing.assert_allclose(relaxed_mask(np.ones(2), u[1:3], 1.0)[1], 1 / odds, rtol=1e-9)
    near, far = (relaxed_mask(np.full(4, s), u, 0.5)[0] for s in (1e-12, 1 - 1e-12))
    assert np.isfinite(near).all()
    assert np.isfinite(far).all()


@pytest.mark.parametrize(
    ("s", "u", "temperature", "message"),
    [
        ([0.5, 1.5], [0.5, 0.5], 1.0, r"keep_prob\[1\] is 1.5"),
        ([0.5, 0.5], [0.5], 1.0, r"uniform of shape \(1,\)"),
        ([0.5], [1.5], 1.0, r"in \[0, 1\]"),
        ([0.5], [0.5], 0.0, r"temperature 0.0: it must be in \(0, 1\]"),
        ([0.5], [0.5], 1.5, r"temperature 1.5"),
        ([0.5], [0.5], np.nan, "temperature nan"),
    ],
)
def test_relaxed_mask_refuses(s, u, temperature, message):
    with pytest.raises(ValueError, match=message):
        relaxed_mask(s, u, temperature)


# Bias, by enumeration and quadrature


def exact_gradient(network, s, value):
    """d/ds_c E L(m) = E[L(m with m_c = 1) - L(m with m_c = 0)], over all masks."""
    masks = enumerate_masks(s.size)
    values = np.array([value(network, mask)[0] for mask in masks])
    found = np.empty(s.size)
    for c in range(s.size):
        others = np.delete(np.where(masks, s, 1 - s), c, axis=1).prod(axis=1)
        found[c] = (np.where(masks[:, c], 1, -1) * values * others).sum()
    return found


def ste_mean(network, s, value):
    masks = enumerate_masks(s.size)
    probabilities = np.where(masks, s, 1 - s).prod(axis=1)
    return sum(p * value(network, m)[1] for p, m in zip(probabilities, masks, strict=True))


def functional(weights, power):
    """A loss of the logits z: sum of w z^power, and its gradient by the mask."""

    def value(network, mask):
        run = gated(network, mask)
        # All masks here, also the empty one, as the plain product of Eq. (1).
        run.unreached.clear()
        logits = run(batch_of().images, True, track=False)
        loss = (logits**power * Tensor(weights)).sum()
        loss.backward()
        return loss.item(), host(run.mask.grad).copy()

    return value


def test_ste_is_unbiased_where_the_loss_is_linear_in_m_and_else_not():
    network, s = one_layer(), np.array([0.2, 0.5, 0.7, 0.9])
    weights = np.random.default_rng(4).normal(size=(8, CLASSES))
    linear, quadratic = functional(weights, 1.0), functional(weights, 2.0)
    exact = exact_gradient(network, s, linear)
    np.testing.assert_allclose(ste_mean(network, s, linear), exact, rtol=1e-10, atol=1e-11)
    assert np.abs(exact).max() > 0.1

    # L = sum w (b + A m)^2: the coefficient of m_c^2 is sum w A_c^2, the bias that times 2 s_c - 1.
    def logits(mask):
        run = gated(network, mask)
        run.unreached.clear()
        return run(batch_of().images, True, track=False).numpy()

    slopes = [logits(np.eye(4)[c]) - logits(np.zeros(4)) for c in range(4)]
    curvature = np.array([(weights * a**2).sum() for a in slopes])
    bias = ste_mean(network, s, quadratic) - exact_gradient(network, s, quadratic)
    np.testing.assert_allclose(bias, curvature * (2 * s - 1), rtol=1e-9, atol=1e-10)
    assert abs(bias[1]) < 1e-10 < 1e-3 < np.abs(bias[[0, 2, 3]]).min()


def test_ste_is_biased_for_the_cross_entropy():
    network, s = one_layer(), np.array([0.2, 0.5, 0.7, 0.9])

    def value(network, mask):
        run = gated(network, mask)
        run.unreached.clear()
        loss = F.cross_entropy(run(batch_of().images, True, track=False), batch_of().labels)
        loss.backward()
        return loss.item(), host(run.mask.grad).copy()

    exact, mean = exact_gradient(network, s, value), ste_mean(network, s, value)
    assert np.abs(mean - exact).max() > 1e-3
    assert np.dot(mean, exact) > 0.9 * np.linalg.norm(mean) * np.linalg.norm(exact)


def test_gumbel_is_unbiased_for_the_relaxed_loss_and_biased_for_the_drawn_one(device):
    """Two channels, expectations over U by quadrature."""
    network, temperature = one_layer(2), 2 / 3
    weights = np.random.default_rng(4).normal(size=(8, CLASSES))
    value = functional(weights, 2.0)
    # The laws hold for any nodes; the stand-in takes milliseconds a pass.
    nodes, w = np.polynomial.legendre.leggauss(8 if device == "stand-in" else 20)
    # U = (1 + sin(pi/2 t)) / 2 clusters nodes where m has its steep ends.
    u, w = (1 + np.sin(np.pi / 2 * nodes)) / 2, w * np.pi / 4 * np.cos(np.pi / 2 * nodes)
    assert w.sum() == pytest.approx(1.0)

    def mean(s):
        loss, gradient = 0.0, np.zeros(2)
        for a, wa in zip(u, w, strict=True):
            for b, wb in zip(u, w, strict=True):
                mask, slope = relaxed_mask(s, np.array([a, b]), temperature)
                one, by_mask = value(network, mask)
                loss += wa * wb * one
                gradient += wa * wb * by_mask * slope
        return loss, gradient

    s = np.array([0.3, 0.6])
    _, gradient = mean(s)
    np.testing.assert_allclose(gradient, differences(lambda x: mean(x)[0], s, 1e-4), rtol=1e-3)
    drawn = exact_gradient(network, s, value)
    assert np.abs(gradient - drawn).max() > 0.02 * np.abs(drawn).max()


# Training

BASE = {"lr": 0.05, "keep_rate": 0.5, "keep_prob_lr": 0.05, "weight_decay": 0.01, "seed": 3}
VARIANTS = {
    "ste": (StraightThrough, {}),
    "gumbel": (GumbelSoftmax, {}),
    "gumbel hard": (GumbelSoftmax, {"gumbel_forward": "hard", "gumbel_temperature": 0.5}),
}


def method_of(variant, network=None, plan=None, **changes):
    kind, own = VARIANTS[variant]
    return kind(network or network_of(), Hyper(**BASE | own | changes), plan or plan_of())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_by_hand(variant):
    """Masks from the keyed stream, dL/dm by differences, times dm/ds; SGD, projection, weights."""
    network = network_of()
    method = method_of(variant, network, keep_prob_optimizer="sgd", momentum=0.0)
    batch, s = batch_of(), method.keep_prob.copy()
    s += np.random.default_rng(0).uniform(-0.2, 0.1, s.size)
    method.keep_prob[...] = s
    before = clone(network)
    u = rng_for(3, "mask", "a", 0).random(s.size)
    temperature = method.hyper.gumbel_temperature
    odds = s / (1 - s) * (1 - u) / u
    soft = odds ** (1 / temperature) / (1 + odds ** (1 / temperature))
    hard = (u < s).astype(float)
    assert repair(network, u < s, s)[1] == 0
    mask = soft if variant == "gumbel" else hard
    slope = 1.0 if variant == "ste" else soft * (1 - soft) / (temperature * s * (1 - s))
    trace = method.train_step(batch)
    assert trace.losses == (pytest.approx(by_hand(before, mask, batch), rel=1e-10),)
    values = [
        [by_hand(before, mask + k * 1e-6 * row, batch) for row in np.eye(s.size)] for k in (0, 1, 2)
    ]
    by_mask = (-3 * np.array(values[0]) + 4 * np.array(values[1]) - np.array(values[2])) / 2e-6
    np.testing.assert_allclose(trace.gradient, by_mask * slope, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(trace.z, s - 0.05 * trace.gradient, rtol=1e-12)
    v = trace.multiplier
    np.testing.assert_allclose(method.keep_prob, np.clip(trace.z - v, 0, 1), atol=1e-12)
    assert method.keep_prob.sum() <= method.budget * (1 + 1e-12)
    np.testing.assert_array_equal(trace.mask_drawn_a, u < s)
    np.testing.assert_array_equal(trace.mask_used_a, mask > 0.0)
    # Weights: w -= lr (grad + decay w) on live entries; others stand still.
    before.zero_grad()
    run = gated(before, mask)
    F.cross_entropy(run(batch.images, True), batch.labels).backward()
    live = live_entries(before, propagate(before, mask > 0.0))
    for name, p in before.named_parameters():
        weight, grad = p.numpy(), host(p.grad)
        wanted = weight - 0.05 * (grad + 0.01 * weight)
        wanted = np.where(live[name], wanted, weight)
        found = dict(network.named_parameters())[name].numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12, err_msg=name)
    buffers = host(dict(network.named_buffers()))
    for name, array in host(dict(before.named_buffers())).items():
        np.testing.assert_allclose(buffers[name], array, rtol=1e-12)


def test_masks_are_algorithm_1s_and_only_the_gradient_differs():
    batch = batch_of()
    ours = method_of("ste").train_step(batch)
    theirs = CompletelySparse(network_of(), Hyper(**BASE), plan_of()).train_step(batch)
    np.testing.assert_array_equal(ours.mask_used_a, theirs.mask_used_a)
    assert ours.loss_a == pytest.approx(theirs.loss_a, rel=1e-10)
    assert np.abs(ours.gradient - theirs.gradient).max() > 1e-3
    # VR-PGE moves every entry by the same |L(m) - L(m')|; the chain rule tells channels apart.
    assert np.unique(np.abs(theirs.gradient).round(12)).size == 1
    assert np.unique(np.abs(ours.gradient).round(12)).size > 15


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_runs_dense_in_both_passes(variant):
    network = build("vgg-small", 10, in_channels=1, width=0.5)
    shape = (12, 12, 1)
    rng = np.random.default_rng(0)
    batch = Batch(0, rng.normal(size=(6, *shape)).astype(np.float32), rng.integers(0, 10, 6))
    method = method_of(variant, network, Plan(5, 5, 6, shape), keep_rate=0.25)
    trace = method.train_step(batch)
    count = count_macs(network, shape)
    assert set(trace.macs) == {"forward_a", "backward"}
    for layer in count.layers:
        n = 6 * layer.macs
        assert trace.macs["forward_a"][layer.name]["forward"] == n
        backward = trace.macs["backward"][layer.name]
        assert backward["weight_gradient"] == n
        assert backward["input_gradient"] == (0 if layer.name == "conv1" else n)
    assert trace.executed_macs == trace.dense_macs
    assert (trace.cost_ratio, trace.passes) == (1.0, (1, 1))
    if variant != "gumbel":
        assert sum(trace.live_channels["a"].values()) < network.n_maskable / 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_lowers_the_loss_and_decides_channels(variant):
    network, batch = network_of(width=0.5, dtype=np.float32), batch_of(dtype=np.float32)
    method = method_of(variant, network, plan_of(60), keep_prob_lr=0.1)
    losses = [method.train_step(batch).loss_a for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    s = method.keep_prob
    assert s.dtype == np.float64
    assert s.std() > 0.1
    assert s.sum() <= method.budget * (1 + 1e-12)
    assert all(p.dtype == np.float32 for p in network.parameters())
    (group,) = method.candidates()
    assert [kind for kind, _ in group] == ["samples"] * 10 + ["top_k"]
    small = method.finalize([batch])
    assert count_macs(small, SHAPE).macs < count_macs(network, SHAPE).macs


@pytest.mark.parametrize("variant", VARIANTS)
def test_keep_rate_one_is_dense_training_bit_for_bit(variant):
    batch = batch_of(dtype=np.float32)
    ours, theirs = (network_of(dtype=np.float32) for _ in range(2))
    method = method_of(variant, ours, keep_rate=1.0)
    dense = Dense(theirs, method.hyper, plan_of())
    for _ in range(4):
        assert method.train_step(batch).loss_a == dense.train_step(batch).loss_a
    wanted = theirs.host_state()
    for name, array in ours.host_state().items():
        np.testing.assert_array_equal(array, wanted[name], name)


def test_frozen_entries_keep_weights_and_momentum():
    method = method_of("ste", network_of(), keep_rate=0.4)
    for seed in range(4):
        before = {name: array.copy() for name, array in method.state().items()}
        trace = method.train_step(batch_of(seed=seed))
        live = live_entries(method.network, propagate(method.network, trace.mask_used_a))
        moved = 0
        for name, parameter in method.network.named_parameters():
            pairs = [(f"network/{name}", parameter)]
            pairs += [(f"optimizer/{name}/velocity", method.optimizer.state[name]["velocity"])]
            for key, array in host(pairs):
                still = ~live[name]
                np.testing.assert_array_equal(array[still], before[key][still], key)
                moved += int((array != before[key]).sum())
        assert moved > 100


def test_repair_of_empty_groups_is_counted():
    method = method_of("ste", keep_rate=0.2)
    repaired = 0
    for i in range(12):
        trace = method.train_step(batch_of(seed=i))
        u = rng_for(3, "mask", "a", i).random(trace.z.size)
        np.testing.assert_array_equal(trace.mask_drawn_a, u < trace.keep_prob_before)
        assert trace.repaired == (trace.mask_used_a ^ trace.mask_drawn_a).sum()
        assert min(trace.live_channels["a"].values()) >= 1
        repaired += trace.repaired
    assert method.repaired == repaired > 0


def test_joint_clipping_scales_weights_and_keep_prob_alike():
    free, clipped = (
        method_of("ste", keep_prob_optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=c)
        for c in (0.0, 0.1)
    )
    start = host(dict(network_of().named_parameters()))
    traces = [method.train_step(batch_of()) for method in (free, clipped)]
    steps = [trace.z - trace.keep_prob_before for trace in traces]
    moves = [
        np.concatenate([(p.numpy() - start[n]).ravel() for n, p in m.network.named_parameters()])
        for m in (free, clipped)
    ]
    norm = np.sqrt((steps[0] ** 2).sum() + (moves[0] ** 2).sum()) / 0.05
    assert norm > 0.2
    for a, b in (steps, moves):
        np.testing.assert_allclose(b, a * 0.1 / norm, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [3, 9])
def test_it_goes_on_from_its_state_bit_for_bit(variant, stop):
    """Search for 7 steps, then fine-tuning: once straight through, once from a copied state."""

    def batches():
        return [batch_of(dtype=np.float32, seed=i) for i in range(12)]

    def run(method, batches):
        for batch in batches:
            if method.step == 7:
                method.start_fine_tuning([batch])
            method.train_step(batch)

    plan = plan_of(12, 7)
    whole = method_of(variant, network_of(dtype=np.float32), plan)
    run(whole, batches())
    first = method_of(variant, network_of(dtype=np.float32), plan)
    run(first, batches()[:stop])
    second = method_of(variant, network_of(width=0.25, dtype=np.float32), plan)
    second.load_state({name: array.copy() for name, array in first.state().items()})
    run(second, batches()[stop:])
    one, two = whole.state(), second.state()
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], name)
    small, same = (m.finalize(batches()[:2]) for m in (whole, second))
    wanted = same.host_state()
    for name, array in small.host_state().items():
        np.testing.assert_array_equal(array, wanted[name], name)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"method": "ste"}, marks=pytest.mark.deep),
        {"method": "gumbel", "fine_tune": 0.5},
    ],
)
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, settings, device, request):
    from minicst.job import prepare
    from minicst.training import Stopped, resume, train

    if device == "stand-in":
        request.getfixturevalue("gpu")
    settings = TrainSettings(
        **settings, network="vgg-tiny", data="digits", width=0.25, epochs=2, batch_size=256,
        dense_probes=0, recalibration_batches=2, threads=1,
        device="cpu" if device == "cpu" else "cuda",
    )  # fmt: skip
    whole = prepare(settings)
    network, summary = train(whole)
    other = prepare(settings)
    with pytest.raises(Stopped):
        train(other, tmp_path, stop=lambda: other.method.step >= 3)
    other = resume(tmp_path)
    assert isinstance(other.method, ChainRule)
    same_network, same_summary = train(other, tmp_path)
    for name, array in whole.method.state().items():
        np.testing.assert_array_equal(array, other.method.state()[name], name)
    assert network.backend is get_backend()
    wanted = network.host_state()
    for name, array in same_network.host_state().items():
        np.testing.assert_array_equal(array, wanted[name], name)
    assert summary["test_accuracy"] == same_summary["test_accuracy"]
    assert summary["executed_macs"] == same_summary["executed_macs"]
    if not settings.fine_tune:
        assert summary["train_cost_saving_paper"] == 1.0
        assert summary["train_cost_saving_executed"] < 1.0  # recalibration counts too


# Refusals


@pytest.mark.parametrize("variant", ["ste", "gumbel"])
@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "pge"},
        {"n_masks": 3},
        {"baseline_decay": 0.5},
        {"precondition_power": 0.0},
        {"resample_every": 4},
        {"backward_masks": 2},
        {"mask_position": "filter"},
    ],
    ids=str,
)
def test_what_the_chain_rule_does_not_read_is_refused(variant, changes):
    (key, value), default = next(iter(changes.items())), Hyper()
    option = "--" + key.replace("_", "-")
    message = f"--method {variant} takes .* {option} {value}: leave it at {getattr(default, key)}"
    with pytest.raises(ValueError, match=message) as error:
        method_of(variant, **changes)
    assert "\n" not in str(error.value)
    # The command line's defaults are the same, else every run would be refused.
    assert getattr(TrainSettings, key) == getattr(default, key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gumbel_temperature": 0.0}, r"--gumbel-temperature 0.0: it must be in \(0, 1\]"),
        ({"gumbel_temperature": 2.0}, "--gumbel-temperature 2.0"),
        ({"gumbel_temperature": float("nan")}, "--gumbel-temperature nan"),
        ({"gumbel_forward": "medium"}, "'medium' of --gumbel-forward: choose soft or hard"),
        ({"keep_rate": 0.0}, "keep rate 0.0"),
    ],
)
def test_gumbel_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        method_of("gumbel", **changes)


def test_gumbels_settings_are_refused_elsewhere():
    assert TrainSettings.gumbel_temperature == Hyper().gumbel_temperature
    assert TrainSettings.gumbel_forward == Hyper().gumbel_forward
    for changes in ({"gumbel_temperature": 0.5}, {"gumbel_forward": "hard"}):
        TrainSettings(method="gumbel", **changes).check()
        for method in ("ste", "completely-sparse"):
            with pytest.raises(
                ValueError, match=f"--gumbel.* is of --method gumbel, not of {method}"
            ):
                TrainSettings(method=method, **changes).check()


def test_the_base_class_has_no_surrogate():
    with pytest.raises(TypeError, match="ChainRule has no surrogate"):
        ChainRule(network_of(), Hyper(**BASE), plan_of()).train_step(batch_of())


# Cost


def test_the_papers_bound():
    assert chain_rule_saving(0.0) == 1.5
    assert chain_rule_saving(1.0) == 1.0
    assert chain_rule_saving(0.25) == pytest.approx(3 / 2.25)


def products(network, mask, shape):
    """The products of chain_rule_macs run on sliced arrays, layer by layer; the meter counts."""
    meter = get_backend().meter
    shapes = network.shapes(shape)
    live = {INPUT: np.ones(shape[2], bool)}
    for name, node in network.nodes.items():
        reads = [live[read] for read in network.inputs[name]]
        live[name] = node.alive(reads, network.own(name, mask))
    table = {}
    for name, unit in network.units().items():
        t, source = unit.transform, network.inputs[name][0]
        counts = []
        for part, ins, outs in (
            ("forward", live[source], np.ones(t.c_out, bool)),
            ("weight_gradient", live[source], live[name]),
            ("input_gradient", np.ones(t.c_in, bool), live[name]),
        ):
            meter.reset()
            if ins.any() and outs.any():
                x = Tensor(
                    np.ones((2, *shapes[source]))[..., ins], requires_grad=part == "input_gradient"
                )
                w = Tensor(
                    t.weight.numpy()[outs][..., ins], requires_grad=part == "weight_gradient"
                )
                y = F.conv2d(x, w, None, t.stride, t.padding) if unit.is_conv else F.linear(x, w)
                if part != "forward":
                    y.backward(np.ones(y.shape))
            counts.append(sum(n for (_, _, which), n in meter.macs.items() if which == part))
        if source in (INPUT, "flatten"):
            counts[2] = 0
        table[name] = counts
    meter.reset()
    return table


@pytest.mark.parametrize("which", ["vgg-tiny", "mlp", "resnet20 tied B", "resnet20 independent A"])
def test_least_cost_is_what_the_meter_counts_on_sliced_arrays(which):
    network = NETWORKS[which]()
    for seed, rate in ((0, 0.6), (1, 0.2)):
        mask = random_mask(network, rate, seed)
        found = chain_rule_macs(network, SHAPE, mask, 2, dense_backward=False)
        wanted = products(network, mask, SHAPE)
        assert {name: list(row.values()) for name, row in found.items()} == wanted
        dense = count_macs(network, SHAPE).executed(2, backward=True)
        paper = chain_rule_macs(network, SHAPE, mask, 2)
        for name, row in paper.items():
            assert row["forward"] == found[name]["forward"]
            for part in ("weight_gradient", "input_gradient"):
                assert row[part] == dense[name][part]
                assert found[name][part] <= row[part]
    assert chain_rule_macs(network, SHAPE, images=2) == dense
    assert chain_rule_macs(network, SHAPE, images=2, dense_backward=False) == dense


def test_least_cost_of_a_depthwise_layer():
    network = depthwise_network()
    mask = np.zeros(12, bool)
    mask[[0, 1, 2, 6 + 1, 6 + 2, 6 + 3]] = True  # other: 1, 2 live; some: both (members 1 and 3)
    table = chain_rule_macs(network, SHAPE, mask, dense_backward=False)
    area = SIDE * SIDE
    wanted = {
        "conv": [area * 9 * 3 * 6, area * 9 * 3 * 3, 0],
        "depthwise": [area * 9 * 3] * 3,
        "other": [area * 9 * 3, area * 9 * 2, area * 9 * 2],
        "some": [area * 2 * 2, area * 2 * 2, area * 6 * 2],
        "classifier": [2 * CLASSES] * 3,
    }
    assert {name: list(row.values()) for name, row in table.items()} == wanted


def test_forward_is_rho_backward_dense_with_the_same_share_in_every_layer():
    network = build("vgg-small", 10, in_channels=1)
    mask = np.zeros(network.n_maskable, bool)
    for place in network.groups.values():
        mask[place.start : place.start + (place.stop - place.start) // 4] = True
    shape = (28, 28, 1)
    dense = chain_rule_macs(network, shape)
    paper, least = (
        chain_rule_macs(network, shape, mask, dense_backward=flag) for flag in (True, False)
    )
    for name in ("conv2", "conv3"):
        whole = dense[name]["forward"]
        assert 4 * paper[name]["forward"] == whole
        assert paper[name]["weight_gradient"] == paper[name]["input_gradient"] == whole
        saving = 3 * whole / sum(paper[name].values())
        assert saving == pytest.approx(chain_rule_saving(0.25))
        assert 16 * least[name]["weight_gradient"] == whole
        assert 4 * least[name]["input_gradient"] == whole


def test_chain_rule_macs_refuses():
    network = network_of()
    with pytest.raises(ValueError, match=r"mask of shape \(3,\)"):
        chain_rule_macs(network, SHAPE, np.ones(3))
    with pytest.raises(ValueError, match="images"):
        chain_rule_macs(network, (6, 6, 4))

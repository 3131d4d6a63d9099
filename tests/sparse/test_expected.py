"""Counts in expectation against all masks and closed forms; the keep rate of a share."""

import itertools

import numpy as np
import pytest

from minicst.models import build
from minicst.nn import INPUT, Add, GlobalPool, Network, Norm, Shortcut, Unit
from minicst.sparse.accounting import count_macs
from minicst.sparse.expected import expected_counts, expected_macs, keep_rate_for
from minicst.sparse.subnetwork import cut

SHAPE = (6, 6, 2)


def head(network, c_in, at):
    at = network.add("mean", GlobalPool(), at)
    network.add("out", Unit.create(c_in, 5, norm=False, relu=False, bias=True), at)
    return network


def bottleneck(tied):
    """A stem and two blocks in one stage: the second add joins three writers, or one group."""
    network = Network("bottleneck", 2)
    s = ["s"] * 3 if tied else ["stem", "b", "d"]
    stream = network.add("stem", Unit.create(2, 4, 3, 2, 1, group=s[0]), INPUT)
    at = network.add("a", Unit.create(4, 2, 1, group="a"), stream)
    at = network.add("b", Unit.create(2, 4, 1, relu=False, group=s[1]), at)
    stream = network.add("add1", Add(4), at, stream)
    at = network.add("c", Unit.create(4, 2, 3, padding=1, group="c"), stream)
    at = network.add("d", Unit.create(2, 4, 1, relu=False, group=s[2]), at)
    stream = network.add("add2", Add(4), at, stream)
    return head(network, 4, stream)


def pre_activation(tied):
    """The stream is raw; the second stage's block and shortcut read one norm."""
    network = Network("pre", 2)
    s = ["s", "s", "t", "t"] if tied else ["stem", "b", "d", "short"]
    plain = {"norm": False, "relu": False}
    stream = network.add("stem", Unit.create(2, 3, 3, padding=1, group=s[0], **plain), INPUT)
    at = network.add("n1", Norm(3), stream)
    at = network.add("a", Unit.create(3, 2, 3, padding=1, group="a"), at)
    at = network.add("b", Unit.create(2, 3, 3, padding=1, group=s[1], **plain), at)
    stream = network.add("add1", Add(3, relu=False), at, stream)
    normed = network.add("n2", Norm(3), stream)
    at = network.add("c", Unit.create(3, 2, 3, 2, 1, group="c"), normed)
    at = network.add("d", Unit.create(2, 4, 1, group=s[2], **plain), at)
    short = network.add("short", Unit.create(3, 4, 1, 2, group=s[3], **plain), normed)
    stream = network.add("add2", Add(4, relu=False), at, short)
    return head(network, 4, network.add("n3", Norm(4), stream))


def padded(tied):
    network = Network("padded", 2)
    stream = network.add("stem", Unit.create(2, 3, 3, padding=1, group="stem"), INPUT)
    short = Shortcut(2, 4, [0, 1, 2], [0, 1, 2], "t" if tied else None)
    short = network.add("short", short, stream)
    at = network.add("a", Unit.create(3, 2, 3, 2, 1, group="a"), stream)
    at = network.add("b", Unit.create(2, 4, 1, relu=False, group="t"), at)
    return head(network, 4, network.add("add", Add(4), at, short))


def separable(_):
    network = Network("separable", 2)
    at = network.add("stem", Unit.create(2, 3, 3, 2, 1, group="stem"), INPUT)
    at = network.add("d1", Unit.create(3, 3, 3, 1, 1, groups=3, group="stem"), at)
    at = network.add("p1", Unit.create(3, 4, 1, group="p1"), at)
    at = network.add("d2", Unit.create(4, 4, 3, 2, 1, groups=4, group="p1"), at)
    at = network.add("p2", Unit.create(4, 3, 1, group="p2"), at)
    return head(network, 3, at)


NETWORKS = {
    f"{make.__name__}-{'tied' if tied else 'independent'}": (make, tied)
    for make in (bottleneck, pre_activation, padded, separable)
    for tied in (True, False)
    if tied or make is not separable
}


def masks(keep_prob):
    """Yield every mask that can be drawn, with its probability."""
    free = np.flatnonzero((keep_prob > 0) & (keep_prob < 1))
    for bits in itertools.product((False, True), repeat=free.size):
        mask = keep_prob == 1
        mask[free] = bits
        yield mask, float(np.prod(np.where(bits, keep_prob[free], 1 - keep_prob[free])))


def uncertain(network, n_free, seed):
    """keep_prob with a sure channel in every group, so that none is ever empty."""
    rng = np.random.default_rng(seed)
    keep_prob = np.ones(network.n_maskable)
    firsts = [place.start for place in network.groups.values()]
    others = np.setdiff1d(np.arange(keep_prob.size), firsts)
    keep_prob[others] = rng.permutation([0.0, 1.0] * others.size)[: others.size]
    keep_prob[rng.permutation(others)[:n_free]] = rng.uniform(0.1, 0.9, n_free)
    return keep_prob


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "tied"), NETWORKS.values(), ids=NETWORKS)
def test_expectation_is_the_sum_over_all_masks(make, tied, seed):
    """Parameters and MACs; every mask's are those of the network that is really cut by it."""
    network = make(tied)
    keep_prob = uncertain(network, min(7, network.n_maskable - len(network.groups)), seed)
    total = np.zeros(3)
    for mask, probability in masks(keep_prob):
        small = cut(network, mask).network
        total += probability * np.array([small.n_parameters(), count_macs(small, SHAPE).macs, 1])
    assert total[2] == pytest.approx(1, abs=1e-12)
    found = expected_counts(network, SHAPE, keep_prob)
    assert found == pytest.approx(tuple(total[:2]), rel=1e-12)
    assert expected_macs(network, SHAPE, keep_prob) == found[1]


def test_empty_groups_are_neglected_as_documented():
    """One block, every mask possible: the formula counts what an empty branch silences."""
    network = Network("block", 2)
    plain = {"norm": False, "relu": False}
    stem = network.add("stem", Unit.create(2, 2, 1, **plain), INPUT)  # never absent
    at = network.add("n", Norm(2), stem)
    at = network.add("a", Unit.create(2, 2, 1, group="a"), at)
    at = network.add("b", Unit.create(2, 2, 1, group="b", **plain), at)
    head(network, 2, network.add("add", Add(2, relu=False), at, stem))
    keep_prob = np.array([0.5, 0.3, 0.6, 0.2])
    pixels = 36
    neglecting, truth = np.zeros(2), np.zeros(2)
    for bits in itertools.product((0, 1), repeat=4):
        probability = np.prod(np.where(bits, keep_prob, 1 - keep_prob))
        a, b = sum(bits[:2]), sum(bits[2:])
        fixed = np.array([4 + 2 * 5 + 5, pixels * 4 + 2 * 5])  # stem, classifier
        branch = np.array([2 * 2 + (2 + 2) * a + a * b, pixels * (2 * a + a * b)])
        neglecting += probability * (fixed + branch)
        truth += probability * (fixed + branch * (a > 0 and b > 0))
    found = expected_counts(network, (6, 6, 2), keep_prob)
    assert found == pytest.approx(tuple(neglecting), rel=1e-12)
    enumerated = np.zeros(2)
    for mask, probability in masks(keep_prob):
        small = cut(network, mask).network
        enumerated += probability * np.array([small.n_parameters(), count_macs(small, SHAPE).macs])
    np.testing.assert_allclose(enumerated, truth, rtol=1e-12)
    assert (truth < neglecting).all()


# Closed forms of whole networks at a uniform keep rate, written from the papers' tables.


def vgg16_closed(rho):
    """Chain: first and last layer fall as rho, all others as rho^2; norms and biases apart."""
    params = macs = 0.0
    live_in, side = 3.0, 32
    for c in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if c == 0:
            side //= 2
            continue
        macs += side**2 * 9 * live_in * rho * c
        params += 9 * live_in * rho * c + 2 * rho * c
        live_in = rho * c
    return params + 10 * live_in + 10, macs + 10 * live_in


def mobilenet_closed(rho):
    """At 224 with 1000 classes: pointwise layers fall as rho^2, depthwise ones as rho."""
    side, c = 112, 32
    macs, params = side**2 * 27 * 32 * rho, 27 * 32 * rho + 2 * 32 * rho
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    for out, stride in [*blocks, *[(512, 1)] * 5, (1024, 2), (1024, 1)]:
        side //= stride
        macs += side**2 * (9 * c * rho + c * out * rho**2)
        params += 9 * c * rho + 2 * c * rho + c * out * rho**2 + 2 * out * rho
        c = out
    return params + 1000 * c * rho + 1000, macs + 1000 * c * rho


def wrn_closed(rho, tied):
    """WRN-28-10: a stream with w writers has 1 - (1 - rho)^w of its channels, tied rho."""
    side, c, live = 32, 16, rho
    macs, params = side**2 * 27 * c * rho, 27 * c * rho
    for stage, out in enumerate((160, 320, 640)):
        writers = 0
        for block in range(4):
            params += 2 * c * live  # norm
            side = side // 2 if stage and not block else side
            reads = c * live
            if block == 0:
                macs += side**2 * reads * out * rho
                params += reads * out * rho
                writers = 1
            for c_in, after in ((reads, 2 * out * rho), (out * rho, 0.0)):
                macs += side**2 * 9 * c_in * out * rho
                params += 9 * c_in * out * rho + after
            writers += 1
            c, live = out, rho if tied else 1 - (1 - rho) ** writers
    return params + 2 * c * live + 10 * c * live + 10, macs + 10 * c * live


CLOSED = [
    ("vgg16", (32, 32, 3), {}, vgg16_closed),
    ("mobilenetv1", (224, 224, 3), {"num_classes": 1000}, mobilenet_closed),
    ("wrn-28-10", (32, 32, 3), {"residual": "tied"}, lambda rho: wrn_closed(rho, True)),
    ("wrn-28-10", (32, 32, 3), {"residual": "independent"}, lambda rho: wrn_closed(rho, False)),
]


@pytest.mark.parametrize(
    ("name", "shape", "options", "closed"), CLOSED, ids=["vgg16", "mobilenet", "tied", "wrn"]
)
def test_whole_networks_and_the_keep_rate_of_a_share(name, shape, options, closed):
    network = build(name, **options)
    n, dense = network.n_maskable, closed(1.0)
    for rho in (1.0, 0.5, 0.125):
        found = expected_counts(network, shape, np.full(n, rho))
        assert found == pytest.approx(closed(rho), rel=1e-12)
    rates = []
    for which, of in ((1, "macs"), (0, "params")):
        for share in (0.02, 0.087, 0.5):
            rates.append(keep_rate_for(network, shape, share, of))
            assert closed(rates[-1])[which] / dense[which] == pytest.approx(share, rel=1e-9)
    # Another share, another rate: more kept for more asked.
    assert all(a < b for a, b in zip(rates[:2] + rates[3:5], rates[1:3] + rates[4:6], strict=True))


def test_the_rate_of_a_chain_solves_a_quadratic():
    """vgg16: rho (first + last) + rho^2 inner = share dense."""
    first, last, dense = 1024 * 27 * 64, 5120, 313_201_664
    a, b = dense - first - last, first + last
    for share in (1e-6, 0.0156, 0.087, 0.75, 0.999_999):
        rho = (-b + np.sqrt(b * b + 4 * a * share * dense)) / (2 * a)
        found = keep_rate_for(build("vgg16", width=1.0), (32, 32, 3), share)
        assert found == pytest.approx(rho, abs=2e-12)


# The keep rate of a share, on small networks


@pytest.mark.parametrize("of", ["macs", "params"])
@pytest.mark.parametrize(("make", "tied"), NETWORKS.values(), ids=NETWORKS)
def test_keep_rate_is_the_inverse_and_monotone(make, tied, of):
    network, which = make(tied), ("params", "macs").index(of)
    n = network.n_maskable
    dense = expected_counts(network, SHAPE, np.ones(n))[which]
    count = count_macs(network, SHAPE)
    assert dense == (count.params, count.macs)[which]
    last = 0.0
    for share in (0.07, 0.2, 0.5, 0.9, 1 - 1e-9):
        rate = keep_rate_for(network, SHAPE, share, of)
        assert last < rate < 1.0
        found = expected_counts(network, SHAPE, np.full(n, rate))[which] / dense
        assert found == pytest.approx(share, abs=1e-9)
        last = rate
    assert keep_rate_for(network, SHAPE, 1.0, of) == 1.0
    # And the other way round.
    for rate in (0.1, 0.37, 0.95):
        share = expected_counts(network, SHAPE, np.full(n, rate))[which] / dense
        assert keep_rate_for(network, SHAPE, share, of) == pytest.approx(rate, abs=1e-9)
    default = keep_rate_for(network, SHAPE, 0.3)
    assert (default == keep_rate_for(network, SHAPE, 0.3, of)) == (of == "macs")


@pytest.mark.parametrize("share", [0.0, -0.1, 1.0000001, 8.7, float("nan"), float("inf")])
def test_a_share_outside_of_0_1(share):
    with pytest.raises(ValueError, match=r"a share of .* of the params: it must be in \(0, 1\]"):
        keep_rate_for(separable(None), SHAPE, share, "params")


def test_a_share_of_another_count():
    with pytest.raises(ValueError, match="a share of 'channels': choose macs or params"):
        keep_rate_for(separable(None), SHAPE, 0.5, "channels")


def test_a_share_below_what_has_no_mask():
    network = separable(None)
    least = 5 / count_macs(network, SHAPE).params  # the classifier's bias
    assert 0 < keep_rate_for(network, SHAPE, 1e-4) < 0.01  # of MACs nothing is left at rate 0
    assert 0 < keep_rate_for(network, SHAPE, 1.1 * least, "params") < 0.1
    with pytest.raises(ValueError, match="separable") as error:
        keep_rate_for(network, SHAPE, 0.9 * least, "params")
    for part in ("params", "separable", f"{least:.3%}", f"{0.9 * least:.3%}", "ask for more"):
        assert part in str(error.value)


def test_a_share_below_an_unmasked_stem():
    network = Network("stem", 2)
    at = network.add("stem", Unit.create(2, 2, 1, norm=False), INPUT)
    head(network, 3, network.add("a", Unit.create(2, 3, 1, group="a"), at))
    dense = count_macs(network, SHAPE).macs  # 144 + 216 + 15; only the stem's have no mask
    assert dense == 375
    with pytest.raises(ValueError, match=r"30\.000% of the macs of stem.*38\.400% already.*more"):
        keep_rate_for(network, SHAPE, 0.3)
    assert keep_rate_for(network, SHAPE, (144 + 231 / 4) / 375) == pytest.approx(0.25, abs=1e-9)


def test_nothing_to_mask():
    network = Network("plain", 2)
    head(network, 2, INPUT)
    with pytest.raises(ValueError, match="network plain has no maskable channels"):
        keep_rate_for(network, SHAPE, 0.5)


@pytest.mark.parametrize("shape", [(), (1,), (1, 17)])
def test_keep_prob_of_another_length(shape):
    network = separable(None)
    with pytest.raises(
        ValueError, match=r"keep_prob of shape .*separable has 10 maskable channels"
    ):
        expected_counts(network, SHAPE, np.full(shape, 0.5))


def test_images_that_do_not_fit():
    with pytest.raises(ValueError, match="takes images"):
        expected_counts(separable(None), (6, 6, 3), np.full(10, 0.5))
    with pytest.raises(ValueError, match="takes images"):
        keep_rate_for(separable(None), (6, 6, 3), 0.5)

"""The closed form of memory against the tape, the cut network's arrays and measured peaks."""

import gc
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

import minicst.functional as F
from minicst.autograd import no_grad, saved_bytes
from minicst.backend import get_backend
from minicst.backend.pool import Workspace
from minicst.data import Batch
from minicst.methods.base import Hyper, Plan
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.dense import Dense
from minicst.models import ARCHITECTURES, NETWORKS, build
from minicst.nn import (
    INPUT,
    Add,
    ChannelNoise,
    Flatten,
    GlobalPool,
    Network,
    Pool,
    SparseLinear,
    Unit,
)
from minicst.optim import SGD, Adam
from minicst.sparse.liveness import repair
from minicst.sparse.memory import StepMemory, forward_memory, step_memory
from minicst.sparse.subnetwork import cut

VARIANTS = [
    (name, residual, shortcut)
    for name in NETWORKS
    for residual in ("tied", "independent")
    for shortcut in "AB"
    if residual == "tied" or "residual" in ARCHITECTURES[name].takes
    if shortcut == "B" or "shortcut" in ARCHITECTURES[name].takes
]
variants = pytest.mark.parametrize("variant", VARIANTS, ids="-".join)


def network_of(variant, **options):
    name, residual, shortcut = variant
    side = 32 if name in ("vgg11", "vgg16", "vgg19") else 12
    width = 0.0625 if side == 32 else 0.25
    options |= {"residual": residual, "shortcut": shortcut, "image_size": side}
    return build(name, 5, width=width, **options), (side, side, 3)


def random_mask(network, rate, seed=0):
    rng = np.random.default_rng(seed)
    n = network.n_maskable
    return repair(network, rng.random(n) < rate, rng.random(n))[0]


def on_tape(network, shape, n):
    """Bytes that the tape holds after a forward pass."""
    x = np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)
    return saved_bytes(F.cross_entropy(network(x, training=True), np.arange(n) % 5))


def state_bytes(network, optimizer=None):
    """Bytes of a network's arrays and its optimizer's."""
    states = [] if optimizer is None else optimizer.state.values()
    arrays = [*network.state().values(), *(a for state in states for a in state.values())]
    return sum(array.nbytes for array in arrays)


# Activations, gradients, what is resident: against the arrays themselves


@variants
def test_activations_equal_what_the_tape_saves(variant):
    network, shape = network_of(variant)
    assert step_memory(network, shape, 3).activations == on_tape(network, shape, 3)
    for seed, rate in enumerate((0.7, 0.4, 0.15)):
        mask = random_mask(network, rate, seed)
        small = cut(network, mask).network
        found = step_memory(network, shape, 2, mask)
        assert found.activations == on_tape(small, shape, 2)
        # A cut network is an ordinary one, and may be cut again.
        assert step_memory(small, shape, 2).activations == found.activations
        again = random_mask(small, 0.6, seed)
        wanted = on_tape(cut(small, again).network, shape, 2)
        assert step_memory(small, shape, 2, again).activations == wanted


def test_activations_with_masks_on_weights():
    """saved_bytes counts the places of sparse weights, which belong to the network, with them."""
    network, shape = network_of(("mlp", "tied", "B"), linear_masks="weights")
    assert step_memory(network, shape, 4).activations == on_tape(network, shape, 4)
    for rate in (0.5, 0.05):
        mask = random_mask(network, rate)
        small = cut(network, mask).network
        sparse = [u.transform for u in small.units().values()]
        places = sum(t.pattern.nbytes for t in sparse if isinstance(t, SparseLinear))
        assert places > 0
        for found in (step_memory(network, shape, 4, mask), step_memory(small, shape, 4)):
            assert found.activations == on_tape(small, shape, 4) - places
            assert found.gradients == sum(p.data.nbytes for p in small.parameters())


def test_activations_of_every_kind_of_node():
    """Average pooling, images flattened, groups, planted noise, a bias, a unit without ReLU."""
    rng = np.random.default_rng(0)
    network = Network("zoo", 4)
    at = network.add("shrink", Pool("avg", 2), INPUT)
    noise = {"seed": 0, "layer": "a", "bad": [True, False] * 4, "channels": range(8)}
    first = Unit.create(4, 8, 3, padding=1, groups=2, bias=True, rng=rng)
    first.noise = ChannelNoise(**noise)
    at = network.add("a", first, at)
    at = network.add("max", Pool("max", 3, 2, 1), at)
    at = network.add("b", Unit.create(8, 6, 3, 2, 1, relu=False, rng=rng), at)
    at = network.add("flat", Flatten(4), at)
    at = network.add("c", Unit.create(24, 7, rng=rng), at)
    network.add("out", Unit.create(7, 5, bias=True, norm=False, relu=False, rng=rng), at)
    found = step_memory(network, (12, 12, 4), 3)
    # The first convolution keeps the shrunk images; to saved_bytes they are a batch like any other.
    shrunk = 4 * 3 * 6 * 6 * 4
    assert found.activations == on_tape(network, (12, 12, 4), 3) + shrunk
    assert found.gradients == sum(p.data.nbytes for p in network.parameters())


@variants
def test_gradients_and_cut_equal_the_cut_networks_arrays(variant):
    network, shape = network_of(variant)
    optimizer = SGD(network, 0.1, momentum=0.9)
    dense = step_memory(network, shape, 2)
    assert dense.gradients == sum(p.data.nbytes for p in network.parameters())
    assert dense.parts["resident"] == state_bytes(network, optimizer)
    assert dense.parts["images"] == 2 * np.prod(shape) * 4
    assert dense.parts["cut"] == 0
    mask_a, mask_b = random_mask(network, 0.6), random_mask(network, 0.3, 1)
    sub_a, sub_b = cut(network, mask_a, optimizer), cut(network, mask_b)
    found = step_memory(network, shape, 2, mask_a, mask_b)
    assert found.gradients == sum(p.data.nbytes for p in sub_a.network.parameters())
    both = state_bytes(sub_a.network, sub_a.optimizer)
    both += state_bytes(sub_b.network) * found.peak_at.startswith("forward_b")
    assert found.parts["cut"] == both
    assert found.parts["resident"] == dense.parts["resident"]
    assert sum(found.parts.values()) == found.peak
    assert sum(dense.parts.values()) == dense.peak


def test_sub_network_b_is_open_at_the_peak_where_it_is_the_larger():
    network, shape = network_of(("vgg-small", "tied", "B"))
    few, every = random_mask(network, 0.05), np.ones(network.n_maskable)
    found = step_memory(network, shape, 8, few, every)
    assert found.peak_at.startswith("forward_b, ")
    sub = cut(network, few, SGD(network, 0.1, momentum=0.9))
    # Only a is updated, so that b has no optimizer state.
    assert found.parts["cut"] == state_bytes(sub.network, sub.optimizer) + state_bytes(network)
    assert found.activations == on_tape(sub.network, shape, 8)
    assert found.parts["gradients"] == 0
    # The other way round b costs nothing: it is gone before a's pass begins.
    alone, both = step_memory(network, shape, 8, every), step_memory(network, shape, 8, every, few)
    assert alone == both


@pytest.mark.parametrize("make", [
    lambda net: SGD(net, 0.1), lambda net: SGD(net, 0.1, momentum=0.9), lambda net: Adam(net, 0.1)
], ids=["sgd", "momentum", "adam"])  # fmt: skip
def test_optimizer_state(make):
    network, shape = network_of(("vgg11", "tied", "B"))
    optimizer = make(network)
    mask = random_mask(network, 0.5)
    sub = cut(network, mask, optimizer)
    found = step_memory(network, shape, 2, mask, state_names=optimizer.state_names)
    assert found.parts["resident"] == state_bytes(network, optimizer)
    assert found.parts["cut"] == state_bytes(sub.network, sub.optimizer)


# Peaks by hand


def chain():
    """1x1 convolutions have no columns: 2 -> 3 -> 5 channels, then the mean and 4 classes."""
    network = Network("by hand", 2)
    plain = {"norm": False, "relu": False}
    at = network.add("a", Unit.create(2, 3, 1, norm=False), INPUT)
    at = network.add("b", Unit.create(3, 5, 1, **plain), at)
    at = network.add("mean", GlobalPool(), at)
    network.add("out", Unit.create(5, 4, **plain), at)
    return network


def test_peak_of_a_chain_by_hand():
    pixels = 10 * 6 * 6  # of ten images
    images, a, b = (4 * pixels * channels for channels in (2, 3, 5))
    w_a, w_b, w_out = 4 * 6, 4 * 15, 4 * 20
    weights = w_a + w_b + w_out
    forward = forward_memory(chain(), (6, 6, 2), 10)
    # b's output is made while its input is there, and its weight transposed.
    assert (forward.peak, forward.peak_at) == (images + weights + a + b + w_b, "forward, b")
    found = step_memory(chain(), (6, 6, 2), 10, state_names=())
    mean = 4 * 10 * 5
    assert found.activations == a + mean + 8 * 10 * 4  # softmax - target
    # In backward through b: the ReLU's result, the gradients of b's result and of its input, the
    # gradients of its weight and the classifier's, the loss. Of the first there are three partial
    # sums more; a part has 108 rows, of which 96 are a stack of one product.
    peak = images + weights + a + b + a + w_out + w_b + 3 * w_b + w_b + 8
    assert (found.peak, found.peak_at) == (peak, "backward, b")
    assert found.parts == {
        "resident": weights, "images": images, "activations": a + 8, "gradients": w_out + w_b,
        "transient": b + a + 4 * w_b, "workspace": 0, "cut": 0,
    }  # fmt: skip


def test_an_array_that_two_functions_saved_by_hand():
    """ReLU saved its result, and so did the convolution that read it: gone when ReLU is done."""
    network = Network("wide and narrow", 2)
    plain = {"norm": False, "relu": False}
    network.add("a", Unit.create(2, 6, 1, norm=False), INPUT)
    network.add("b", Unit.create(6, 1, 1, **plain), "a")
    network.add("mean", GlobalPool(), "b")
    network.add("out", Unit.create(1, 4, **plain), "mean")
    found = step_memory(network, (9, 9, 2), 10, state_names=())
    images, a = (4 * 810 * channels for channels in (2, 6))
    w_a, w_b, w_out = 4 * 12, 4 * 6, 4 * 4
    peak = images + (w_a + w_b + w_out) + a + 2 * a + w_b + w_out + 8
    assert (found.peak, found.peak_at) == (peak, "backward, a")


def test_a_residual_sum_by_hand():
    """The sum hands one gradient on to both streams; where they meet again, a third is made."""
    network = Network("residual", 2)
    plain = {"norm": False, "relu": False}
    network.add("stem", Unit.create(2, 6, 1, **plain), INPUT)
    network.add("branch", Unit.create(6, 6, 1, **plain), "stem")
    network.add("add", Add(6, relu=False), "branch", "stem")
    network.add("mean", GlobalPool(), "add")
    network.add("out", Unit.create(6, 4, **plain), "mean")
    images, stream = (4 * 810 * channels for channels in (2, 6))
    w_stem, w, w_out = 4 * 12, 4 * 36, 4 * 24
    weights = w_stem + w + w_out
    forward = forward_memory(network, (9, 9, 2), 10)
    assert (forward.peak, forward.peak_at) == (images + weights + 3 * stream, "forward, add")
    found = step_memory(network, (9, 9, 2), 10, state_names=())
    # The stem's result is saved; the sum's gradient, the branch's, and the total of both.
    peak = images + weights + stream + 3 * stream + w + w_out + 8
    assert (found.peak, found.peak_at) == (peak, "backward, branch")


def test_pooled_images_need_no_taps():
    network = Network("pooled", 2)
    network.add("max", Pool("max", 2), INPUT)
    network.add("mean", GlobalPool(), "max")
    network.add("out", Unit.create(2, 5, norm=False, relu=False), "mean")
    found = step_memory(network, (8, 8, 2), 3)
    assert found.activations == 3 * 2 * 4 + 3 * 5 * 8  # the mean, softmax - target


def test_columns_by_hand():
    """3x3 on 8x8 pixels of 16 channels, 8 images: chunks of two images each for every thread."""
    network = Network("columns", 16)
    plain = {"norm": False, "relu": False}
    network.add("a", Unit.create(16, 4, 3, padding=1, **plain), INPUT)
    network.add("out", Unit.create(4, 2, 8, **plain), "a")
    columns, padded = 4 * 2 * 64 * 9 * 16, 4 * 2 * 100 * 16
    for threads in (1, 2, 3):
        found = forward_memory(network, (8, 8, 16), 8, threads=threads)
        assert found.parts["workspace"] == threads * (columns + padded)


# Measured


def measured(prepare, run, threads=1):
    """Peak of all that prepare() and run(what it returns) allocate, workspaces too."""
    backend = get_backend()
    before, workspace = backend.threads, backend.workspace
    backend.set_threads(threads)
    backend.workspace = Workspace()  # another network's may be larger
    gc.collect()
    gc.disable()  # what only the collector would free counts
    tracemalloc.start()
    try:
        ready = prepare()
        tracemalloc.reset_peak()  # not what building took
        result = run(ready)
        return tracemalloc.get_traced_memory()[1], result
    finally:
        tracemalloc.stop()
        gc.enable()
        backend.workspace = workspace
        backend.set_threads(before)


def close(peak, form: StepMemory):
    """The goal, and no more slack below than workspaces that a thread didn't come to need."""
    return form.peak / 1.05 <= peak <= 1.3 * form.peak


MEASURED = [
    ("vgg11", {"width": 0.5}, (32, 32, 3), 16),
    ("resnet20", {}, (32, 32, 3), 24),
    ("resnet20", {"residual": "independent", "shortcut": "A"}, (24, 24, 3), 32),
    ("wrn-28-10", {"width": 0.1, "residual": "independent"}, (32, 32, 3), 8),
    ("mobilenetv1", {"width": 0.5}, (64, 64, 3), 16),
]
networks = pytest.mark.parametrize(
    ("name", "options", "shape", "n"),
    MEASURED,
    ids=["-".join([case[0], *map(str, case[1].values())]) for case in MEASURED],
)


def method_and_batch(method, name, options, shape, n, rate=1.0):
    network = build(name, 10, **options)
    rng = np.random.default_rng(0)
    batch = Batch(0, rng.standard_normal((n, *shape), np.float32), rng.integers(0, 10, n))
    return method(network, Hyper(keep_rate=rate), Plan(10, 10, n, shape)), batch


def step(ready):
    method, batch = ready
    return method.train_step(batch)


@networks
def test_measured_peak_of_a_dense_step(name, options, shape, n):
    case = name, options, shape, n
    peak, _ = measured(lambda: method_and_batch(Dense, *case), step)
    assert close(peak, step_memory(build(name, 10, **options), shape, n))


@pytest.mark.parametrize("rate", [0.6, 0.25])
@networks
def test_measured_peak_of_a_step_of_algorithm_1(name, options, shape, n, rate):
    case = name, options, shape, n, rate
    peak, trace = measured(lambda: method_and_batch(CompletelySparse, *case), step)
    form = step_memory(build(name, 10, **options), shape, n, *trace.masks_used)
    assert close(peak, form)


def test_measured_peak_on_two_threads():
    case = "resnet20", {"width": 2}, (32, 32, 3), 16
    peak, _ = measured(lambda: method_and_batch(Dense, *case), step, threads=2)
    form = step_memory(build("resnet20", 10, width=2), (32, 32, 3), 16, threads=2)
    assert close(peak, form)
    assert (
        form.parts["workspace"]
        > 1.5 * step_memory(build("resnet20", 10, width=2), (32, 32, 3), 16).parts["workspace"]
    )


@networks
def test_measured_peak_of_a_forward_pass(name, options, shape, n):
    def prepare():
        network = build(name, 10, **options)
        return network, np.zeros((n, *shape), np.float32)

    def run(ready):
        network, images = ready
        with no_grad():
            network(images, training=True, track=False)

    peak, _ = measured(prepare, run)
    assert close(peak, forward_memory(build(name, 10, **options), shape, n))


def test_the_form_itself_allocates_next_to_nothing():
    """VGG-19 at batch 128: a step of half a gigabyte, counted in less than one megabyte."""
    network = build("vgg19", 10)
    masks = random_mask(network, 0.5), random_mask(network, 0.5, 1)
    gc.collect()
    tracemalloc.start()
    try:
        form = step_memory(network, (32, 32, 3), 128, *masks)
        assert tracemalloc.get_traced_memory()[1] < 1e6 < 3e8 < form.peak
    finally:
        tracemalloc.stop()
    assert get_backend().meter.total() == 0


# What falls, and how


def halves(network):
    """Every second channel of every group."""
    mask = np.zeros(network.n_maskable, bool)
    for place in network.groups.values():
        mask[place.start : place.stop : 2] = True
    return mask


@pytest.mark.parametrize("variant", [
    ("vgg11", "tied", "B"), ("resnet20", "tied", "B"), ("mobilenetv1", "tied", "B")
], ids="-".join)  # fmt: skip
def test_activations_fall_with_rho(variant):
    """At rho = 1/2 exactly half, but for the loss's softmax - target."""
    network, shape = network_of(variant)
    loss = 8 * 6 * 5
    dense = step_memory(network, shape, 6).activations - loss
    assert step_memory(network, shape, 6, halves(network)).activations - loss == dense / 2


def test_weights_and_gradients_fall_with_the_square_of_rho():
    """But for the first layer, the classifier and batch norm, which fall with rho."""
    network = build("vgg11")
    quarter = halves(network)
    half, dense = (
        step_memory(network, (32, 32, 3), 2, quarter),
        step_memory(network, (32, 32, 3), 2),
    )
    linear = 64 * 27 + 512 * 10 + 2 * sum(p.stop - p.start for p in network.groups.values())
    inner = dense.gradients / 4 - linear - 10  # the classifier's bias stays
    assert half.gradients / 4 == inner / 4 + linear / 2 + 10


@pytest.mark.parametrize("variant", [
    ("vgg19", "tied", "B"), ("resnet32", "tied", "B"), ("resnet20", "independent", "A"),
    ("wrn-28-10", "independent", "B"), ("resnet50", "tied", "B"), ("mobilenetv1", "tied", "B"),
], ids="-".join)  # fmt: skip
def test_peak_falls_with_nested_masks(variant):
    network, shape = network_of(variant)
    draws = np.random.default_rng(0).random(network.n_maskable)
    rates = (1.0, 0.8, 0.6, 0.4, 0.2)
    masks = [repair(network, draws < rate, 1.0 - draws)[0] for rate in rates]
    forms = [step_memory(network, shape, 64, mask, mask) for mask in masks]
    for larger, smaller in pairwise(forms):
        assert smaller.peak < larger.peak
        assert smaller.activations < larger.activations
        assert smaller.gradients < larger.gradients


def test_activations_grow_with_the_batch():
    network, shape = network_of(("resnet20", "independent", "A"))
    mask = random_mask(network, 0.4)
    found = [step_memory(network, shape, n, mask).activations for n in (1, 2, 5)]
    assert found[2] - found[0] == 4 * (found[1] - found[0])


# Errors


@pytest.mark.parametrize("n", [0, -3, 2.5, None, "8"])
def test_impossible_batch_size(n):
    network, shape = network_of(("vgg-tiny", "tied", "B"))
    for count in (step_memory, forward_memory):
        with pytest.raises(ValueError, match=f"batch size {n}: a whole number of at least 1"):
            count(network, shape, n)


def test_impossible_threads_images_and_masks():
    network, shape = network_of(("vgg-tiny", "tied", "B"))
    mask = np.ones(network.n_maskable)
    with pytest.raises(ValueError, match="threads 0: a whole number"):
        step_memory(network, shape, 2, threads=0)
    with pytest.raises(ValueError, match=r"takes images \(h, w, 3\)"):
        step_memory(network, (8, 8, 1), 2)
    with pytest.raises(ValueError, match="mask of shape"):
        step_memory(network, shape, 2, mask[1:])
    with pytest.raises(ValueError, match="mask of shape"):
        step_memory(network, shape, 2, mask, mask[1:])
    with pytest.raises(ValueError, match="only 0 and 1"):
        forward_memory(network, shape, 2, mask / 2)
    with pytest.raises(ValueError, match="mask_b without mask_a"):
        step_memory(network, shape, 2, None, mask)
    with pytest.raises(ValueError, match="lets nothing reach the output"):
        step_memory(network, shape, 2, 0 * mask)

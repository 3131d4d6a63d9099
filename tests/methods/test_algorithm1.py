"""Algorithm 1's step against a reference written out here, from the masked form of the network.

The reference knows nothing of cut, of the optimizers, of the estimators or of the projection: it
takes gradients of the masked network (the definition) and does the rest by formula.
"""

import math

import numpy as np
import pytest
from arrays import host, to_device

import minicst.functional as F
from minicst.backend import cpu_backend
from minicst.data import Batch
from minicst.methods.base import Hyper, Plan
from minicst.methods.completely_sparse import CompletelySparse
from minicst.models import build
from minicst.nn import clone
from minicst.randomness import rng_for
from minicst.sparse.liveness import repair
from minicst.sparse.masked_form import masked

SHAPE = (8, 8, 3)
SEED = 3


def network_of(
    name="vgg-tiny", width=0.25, residual="tied", dtype=np.float64, linear_masks="channels"
):
    options = {"residual": residual, "linear_masks": linear_masks}
    network = build(name, 5, width=width, image_size=8, seed=1, **options)
    rng = np.random.default_rng(0)
    for unit in network.units().values():
        if unit.norm is not None:
            unit.norm.gamma.data[...] = to_device(rng.uniform(0.5, 1.5, unit.norm.gamma.shape))
            unit.norm.beta.data[...] = to_device(rng.normal(0.2, 0.5, unit.norm.beta.shape))
    return network.astype(dtype)


def batches_of(n_batches, n=8, dtype=np.float64):
    rng = np.random.default_rng(7)
    for i in range(n_batches):
        yield Batch(i, rng.normal(size=(n, *SHAPE)).astype(dtype), rng.integers(0, 5, n))


def plan_of(steps=10, search=None, n=8):
    return Plan(steps, steps if search is None else search, n, SHAPE)


def cosine(progress):
    return 0.5 * (1 + math.cos(math.pi * progress))


def bisected(z, budget, lower, upper):
    """Projection on {lower <= s <= upper, sum s <= budget} by bisection of the multiplier."""
    if np.clip(z, lower, upper).sum() <= budget:
        return np.clip(z, lower, upper), 0.0
    low, high = 0.0, float(np.abs(z).max()) + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(z - middle, lower, upper).sum() > budget:
            low = middle
        else:
            high = middle
    return np.clip(z - high, lower, upper), high


def entries_of(network, live, mask=None):
    """{parameter or buffer: bool}, one by one from the live channels of each node.

    The flat mask itself counts where each weight has an entry.
    """
    entries = {}
    for name, array in network.state().items():
        node = name.split(".transform.")[0].split(".norm.")[0]
        entry = np.ones(array.shape, bool)
        entry[~live[node]] = False
        if name.endswith("weight"):
            entry[..., ~live[network.inputs[node][0]]] = False
            if network.nodes[node].mask_on == "weights":
                entry &= mask[network.groups[network.nodes[node].group]].reshape(array.shape)
        entries[name] = entry
    return entries


class Reference:
    """Algorithm 1 in the masked form, line by line; on the CPU, wherever the method runs."""

    def __init__(self, network, hyper, plan):
        self.network, self.hyper, self.plan = clone(network).to(cpu_backend()), hyper, plan
        n = network.n_maskable
        self.s = np.full(n, hyper.keep_rate)
        self.budget = hyper.keep_rate * n
        parameters = self.network.named_parameters()
        self.velocity = {name: np.zeros(p.shape, p.dtype) for name, p in parameters}
        self.first, self.second, self.updates = np.zeros(n), np.zeros(n), 0
        self.step = 0
        self.used_a = None

    def mask(self, which):
        drawn = rng_for(self.hyper.seed, "mask", which, self.step).random(self.s.size) < self.s
        return drawn, repair(self.network, drawn, self.s)[0]

    def loss(self, mask, batch, track):
        form = masked(self.network, mask, mask_position=self.hyper.mask_position)
        logits = form(batch.images, True, track=track, step=self.step)
        return F.cross_entropy(logits, batch.labels, self.hyper.label_smoothing), form.live

    def gradients(self, loss):
        self.network.zero_grad()
        loss.backward()
        return {name: p.grad.copy() for name, p in self.network.named_parameters()}

    def estimate(self, loss_a, loss_b, a, b):
        hyper, s = self.hyper, self.s
        h = (s * (1 - s)) ** hyper.precondition_power
        with np.errstate(invalid="ignore", divide="ignore"):
            score_a = np.where(s * (1 - s) > 0, (a - s) / (s * (1 - s)), 0.0)
            score_b = np.where(s * (1 - s) > 0, (b - s) / (s * (1 - s)), 0.0)
        if hyper.estimator == "pge":
            return loss_a * h * score_a
        if hyper.estimator == "vr-pge-symmetric":
            return (loss_a - loss_b) * h * (score_a - score_b) / 2
        if hyper.estimator == "coin":
            coin = [-1, 1][rng_for(hyper.seed, "coin", self.step).integers(2)]
            return coin * abs(loss_a - loss_b) * h * score_a
        return (loss_a - loss_b) * h * score_a

    def move_s(self, gradient):
        hyper = self.hyper
        lr = hyper.keep_prob_lr * cosine(self.step / self.plan.search_steps)
        if hyper.keep_prob_optimizer == "sgd":
            z = self.s - lr * gradient
        else:
            self.updates += 1
            self.first = 0.9 * self.first + 0.1 * gradient
            self.second = 0.999 * self.second + 0.001 * gradient**2
            m = self.first / (1 - 0.9**self.updates)
            v = self.second / (1 - 0.999**self.updates)
            z = self.s - lr * m / (np.sqrt(v) + 1e-8)
        floor = hyper.keep_prob_floor
        lower, upper = min(floor, hyper.keep_rate / 2), 1 - floor
        self.s, multiplier = bisected(z, self.budget, lower, upper)
        return z, multiplier

    def move_w(self, gradients, entries):
        hyper = self.hyper
        lr = hyper.lr * cosine(self.step / self.plan.total_steps)
        for name, p in self.network.named_parameters():
            now = p.data
            g = gradients[name] + hyper.weight_decay * now
            v = hyper.momentum * self.velocity[name] + g
            w = now - lr * (g + hyper.momentum * v if hyper.nesterov else v)
            at = entries[name]
            self.velocity[name][at] = v[at]
            p.data[...] = np.where(at, w, now)

    def train_step(self, batch):
        hyper = self.hyper
        later = self.step % hyper.resample_every != 0
        if later:
            loss, live = self.loss(self.used_a, batch, track=True)
            self.move_w(self.gradients(loss), entries_of(self.network, live, self.used_a))
            self.step += 1
            return {"loss_a": loss.item()}
        (a, self.used_a), (b, used_b) = self.mask("a"), self.mask("b")
        loss_b, live_b = self.loss(used_b, batch, track=False)
        grad_b = self.gradients(loss_b) if hyper.backward_masks == 2 else None
        loss_a, live = self.loss(self.used_a, batch, track=True)
        grads = self.gradients(loss_a)
        entries = entries_of(self.network, live, self.used_a)
        if grad_b is not None:
            grads = {name: (g + grad_b[name]) / 2 for name, g in grads.items()}
            other = entries_of(self.network, live_b, used_b)
            entries = {name: at | other[name] for name, at in entries.items()}
        gradient = self.estimate(loss_a.item(), loss_b.item(), a, b)
        before = self.s
        s_gradient = gradient
        if hyper.clip_norm:
            square = sum((g[entries[name]] ** 2).sum() for name, g in grads.items())
            norm = math.sqrt(square + (gradient**2).sum())
            factor = min(1.0, hyper.clip_norm / (norm + 1e-6))
            grads = {name: g * factor for name, g in grads.items()}
            s_gradient = gradient * factor
        z, multiplier = self.move_s(s_gradient)
        self.move_w(grads, entries)
        self.step += 1
        return {
            "loss_a": loss_a.item(),
            "loss_b": loss_b.item(),
            "mask_drawn_a": a,
            "mask_drawn_b": b,
            "mask_used_a": self.used_a,
            "mask_used_b": used_b,
            "keep_prob_before": before,
            "gradient": gradient,
            "z": z,
            "multiplier": multiplier,
            "keep_prob": self.s,
        }


def assert_same(method, reference, tolerance=1e-9):
    np.testing.assert_allclose(method.keep_prob, reference.s, rtol=0, atol=tolerance)
    method.end_epoch()
    wanted = reference.network.host_state()
    for name, array in method.network.host_state().items():
        scale = max(np.abs(wanted[name]).max(), 1.0)
        np.testing.assert_allclose(
            array, wanted[name], rtol=0, atol=tolerance * scale, err_msg=name
        )
    for name, state in host(method.optimizer.state).items():
        for key, array in state.items():
            assert key == "velocity"
            np.testing.assert_allclose(
                array, reference.velocity[name], rtol=0, atol=tolerance * 10, err_msg=name
            )


BASE = {
    "lr": 0.1,
    "keep_rate": 0.4,
    "keep_prob_lr": 0.1,
    "weight_decay": 0.01,
    "momentum": 0.9,
    "seed": SEED,
}
CASES = {
    "adam": {},
    "sgd on s": {"keep_prob_optimizer": "sgd", "keep_prob_lr": 2.0},
    "symmetric": {"estimator": "vr-pge-symmetric"},
    "pge": {"estimator": "pge", "keep_prob_optimizer": "sgd", "keep_prob_lr": 0.05},
    "coin": {"estimator": "coin", "keep_prob_optimizer": "sgd", "keep_prob_lr": 1.0},
    "alpha 0": {"precondition_power": 0.0, "keep_prob_optimizer": "sgd"},
    "alpha 1": {"precondition_power": 1.0, "keep_prob_optimizer": "sgd", "keep_prob_lr": 3.0},
    "floor": {"keep_prob_floor": 0.15, "keep_prob_lr": 0.3},
    "floor above half of rho": {"keep_prob_floor": 0.3, "keep_prob_lr": 0.3},
    "nesterov, smoothing": {"nesterov": True, "label_smoothing": 0.1},
    "clip": {"clip_norm": 0.5, "keep_prob_optimizer": "sgd", "keep_prob_lr": 2.0},
    "every 2nd": {"resample_every": 2},
    "every 3rd": {"resample_every": 3, "keep_prob_optimizer": "sgd"},
    "filter": {"mask_position": "filter"},
}


@pytest.mark.parametrize("case", CASES)
def test_five_steps_are_the_references(case):
    hyper = Hyper(**BASE | CASES[case])
    network = network_of()
    reference = Reference(network, hyper, plan_of())
    if case == "filter":  # as released: decay and momentum move absent filters too

        class Everywhere(Reference):
            def move_w(self, gradients, entries):
                super().move_w(gradients, {name: np.ones_like(at) for name, at in entries.items()})

        reference = Everywhere(network, hyper, plan_of())
    method = CompletelySparse(network, hyper, plan_of())
    moved = method.keep_prob.copy()
    for batch in batches_of(5):
        trace = method.train_step(batch)
        wanted = reference.train_step(batch)
        for key, value in wanted.items():
            if hyper.estimator == "pge" and key.endswith("_b"):
                assert getattr(trace, key) is None
                continue
            np.testing.assert_allclose(
                np.asarray(getattr(trace, key), float), np.asarray(value, float),
                rtol=1e-8, atol=1e-9, err_msg=key,
            )  # fmt: skip
        assert_same(method, reference)
    assert np.abs(method.keep_prob - moved).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "width", "residual"),
    [("resnet20", 0.25, "tied"), ("resnet20", 0.25, "independent"), ("mlp", 0.125, "tied")],
)
def test_other_networks(name, width, residual):
    # At this keep rate groups of four are often empty: repair and empty branches take part.
    hyper = Hyper(**BASE | {"keep_rate": 0.25, "lr": 0.03})
    network = network_of(name, width, residual)
    reference = Reference(network, hyper, plan_of())
    method = CompletelySparse(network, hyper, plan_of())
    for batch in batches_of(5):
        trace = method.train_step(batch)
        wanted = reference.train_step(batch)
        assert trace.loss_a == pytest.approx(wanted["loss_a"], rel=1e-8)
        assert trace.loss_b == pytest.approx(wanted["loss_b"], rel=1e-8)
        assert_same(method, reference, 1e-7)


@pytest.mark.parametrize(
    "case",
    ["adam", "sgd on s", "symmetric", "clip", "every 2nd", "nesterov, smoothing", "two backward"],
)
@pytest.mark.parametrize(("name", "width"), [("mlp", 0.125), ("vgg-tiny", 0.25)])
def test_masks_of_weights(name, width, case):
    """Linear layers masked weight by weight, at a rate that leaves some neurons without any."""
    changes = {"backward_masks": 2} if case == "two backward" else CASES[case]
    hyper = Hyper(**BASE | changes | {"keep_rate": 0.25, "lr": 0.03})
    network = network_of(name, width, linear_masks="weights")
    reference = Reference(network, hyper, plan_of())
    method = CompletelySparse(network, hyper, plan_of())
    moved = method.keep_prob.copy()
    for batch in batches_of(5):
        trace = method.train_step(batch)
        wanted = reference.train_step(batch)
        for key, value in wanted.items():
            np.testing.assert_allclose(
                np.asarray(getattr(trace, key), float), np.asarray(value, float),
                rtol=1e-7, atol=1e-8, err_msg=key,
            )  # fmt: skip
        if case != "two backward":  # its batch norm statistics come from pass a alone
            assert_same(method, reference, 1e-8)
    assert np.abs(method.keep_prob - moved).max() > 1e-3


def test_float32_follows_within_rounding():
    hyper = Hyper(**BASE | {"keep_prob_optimizer": "sgd", "keep_prob_lr": 1.0, "lr": 0.02})
    reference = Reference(network_of(), hyper, plan_of())
    method = CompletelySparse(network_of(dtype=np.float32), hyper, plan_of())
    for batch in batches_of(5):
        small = Batch(batch.index, batch.images.astype(np.float32), batch.labels)
        trace = method.train_step(small)
        wanted = reference.train_step(batch)
        assert trace.loss_a == pytest.approx(wanted["loss_a"], rel=2e-4)
        np.testing.assert_allclose(method.keep_prob, reference.s, atol=2e-4)
    assert method.keep_prob.dtype == np.float64


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_two_backward_passes_average_both_gradients(every, clip_norm):
    """On entries live in either sub-network; what lies in neither is frozen."""
    hyper = Hyper(**BASE | {"backward_masks": 2, "resample_every": every, "clip_norm": clip_norm})
    method = CompletelySparse(network_of(), hyper, plan_of())
    reference = Reference(network_of(), hyper, plan_of())
    for number, batch in enumerate(batches_of(6)):
        if number % every:
            method.train_step(batch)
            continue
        # From the method's own state: one step at a time.
        method.end_epoch()
        reference.network.load_state(method.network.host_state())
        for name, state in method.optimizer.state.items():
            reference.velocity[name] = host(state["velocity"]).copy()
        reference.s, reference.step = method.keep_prob.copy(), method.step
        before = {name: array.copy() for name, array in method.network.host_state().items()}
        trace = method.train_step(batch)
        wanted = reference.train_step(batch)
        assert trace.passes == (2, 2)
        assert trace.loss_b == pytest.approx(wanted["loss_b"], rel=1e-10)
        method.end_epoch()
        live_a = masked(reference.network, trace.mask_used_a).live
        live_b = masked(reference.network, trace.mask_used_b).live
        in_a, in_b = (entries_of(method.network, live) for live in (live_a, live_b))
        moved = 0
        targets = reference.network.host_state()
        for name, array in method.network.host_state().items():
            target = targets[name]
            either = in_a[name] | in_b[name]
            if "running" in name:
                either = in_a[name]  # batch norm's statistics come from pass a
            np.testing.assert_allclose(array[either], target[either], atol=1e-10, err_msg=name)
            np.testing.assert_array_equal(array[~either], before[name][~either], name)
            moved += int((in_b[name] & ~in_a[name] & (array != before[name])).sum())
        assert moved > 0


def test_both_losses_are_at_the_weights_before_the_update():
    """The two losses of a step, computed again on a copy that the step doesn't touch."""
    network = network_of()
    method = CompletelySparse(network, Hyper(**BASE), plan_of())
    for batch in batches_of(3):
        before = clone(network)
        trace = method.train_step(batch)
        for mask, loss in ((trace.mask_used_a, trace.loss_a), (trace.mask_used_b, trace.loss_b)):
            logits = masked(before, mask)(batch.images, True, track=False)
            assert F.cross_entropy(logits, batch.labels).item() == pytest.approx(loss, rel=1e-10)


@pytest.mark.parametrize("backward_masks", [1, 2])
def test_forward_b_leaves_running_statistics_alone(backward_masks):
    network = network_of()
    method = CompletelySparse(
        network, Hyper(**BASE | {"backward_masks": backward_masks}), plan_of()
    )
    seen = 0
    for batch in batches_of(5):
        before = {name: host(array).copy() for name, array in network.named_buffers()}
        trace = method.train_step(batch)
        live_a = masked(network, trace.mask_used_a).live
        live_b = masked(network, trace.mask_used_b).live
        for name, array in network.named_buffers():
            node = name.split(".norm.")[0]
            changed = host(array) != before[name]
            np.testing.assert_array_equal(changed, live_a[node], name)
            seen += int((live_b[node] & ~live_a[node]).sum())
    assert seen > 0


def test_score_takes_the_mask_as_drawn():
    hyper = Hyper(**BASE | {"keep_rate": 0.2, "keep_prob_optimizer": "sgd"})
    network = network_of()
    method = CompletelySparse(network, hyper, plan_of(40))
    repaired = 0
    for batch in batches_of(12):
        trace = method.train_step(batch)
        s, drawn, used = trace.keep_prob_before, trace.mask_drawn_a, trace.mask_used_a
        np.testing.assert_array_equal(
            drawn, rng_for(SEED, "mask", "a", trace.step).random(s.size) < s
        )
        by_hand = (trace.loss_a - trace.loss_b) * (drawn - s) / np.sqrt(s * (1 - s))
        np.testing.assert_allclose(trace.gradient, by_hand, rtol=1e-10, atol=1e-14)
        if (drawn != used).any():
            assert (used & ~drawn).sum() == (used ^ drawn).sum()  # only switched on
            wrong = (trace.loss_a - trace.loss_b) * (used - s) / np.sqrt(s * (1 - s))
            assert np.abs(trace.gradient - wrong).max() > 1e-6
        extra = int((used ^ drawn).sum() + (trace.mask_used_b ^ trace.mask_drawn_b).sum())
        assert trace.repaired == extra
        repaired += extra
    assert repaired > 0
    assert method.repaired == repaired


def test_adam_on_the_weights_moves_live_entries_only():
    network = network_of()
    hyper = Hyper(**BASE | {"optimizer": "adam", "lr": 0.01})
    method = CompletelySparse(network, hyper, plan_of())
    for batch in batches_of(3):
        before = {name: array.copy() for name, array in network.host_state().items()}
        trace = method.train_step(batch)
        at = entries_of(network, masked(network, trace.mask_used_a).live)
        for name, array in network.host_state().items():
            np.testing.assert_array_equal(array[~at[name]], before[name][~at[name]], name)
            if name.endswith("conv2.transform.weight"):
                assert (array != before[name])[at[name]].all()
    assert method.optimizer.steps == 3


def test_bisection_finds_the_nearest_point():
    """The oracle itself, on points whose projection is known."""
    s, v = bisected(np.array([0.9, 0.5, 0.1]), 0.75, 0.0, 1.0)
    np.testing.assert_allclose(s, [0.575, 0.175, 0.0], atol=1e-12)
    assert v == pytest.approx(0.325)
    assert bisected(np.array([-0.5, 0.2]), 1.0, 0.0, 1.0)[1] == 0.0

"""Blocks, final masks, costs and the small functions that methods are made of."""

from dataclasses import fields

import numpy as np
import pytest
from arrays import host, to_device

import minicst.functional as F
from minicst.backend import get_backend
from minicst.data import Batch
from minicst.methods.base import (
    Hyper,
    Method,
    Plan,
    build_optimizer,
    clip_gradients,
    evaluate,
    recalibrate,
)
from minicst.methods.completely_sparse import CompletelySparse, checked_budget
from minicst.methods.dense import Dense, Narrow
from minicst.methods.trace import StepTrace
from minicst.models import build
from minicst.nn import clone
from minicst.sparse import count_macs, cut, top_k_mask
from minicst.sparse.expected import expected_macs, linear_macs_cost

SHAPE = (8, 8, 1)


def network_of(width=0.25, **options):
    return build("vgg-tiny", in_channels=1, width=width, **options)


def batches_of(n_batches, n=8, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n_batches, n, *SHAPE)).astype(np.float32)
    return [Batch(i, x, rng.integers(0, 10, n)) for i, x in enumerate(images)]


def method_of(search=20, total=20, width=0.25, **hyper):
    return CompletelySparse(network_of(width), Hyper(**hyper), Plan(total, search, 8, SHAPE))


def executed(network, masks_and_backward):
    return sum(
        sum(passes.values())
        for mask, backward in masks_and_backward
        for passes in count_macs(network, SHAPE, mask).executed(8, backward).values()
    )


def test_a_block_moves_keep_prob_once_and_keeps_its_mask():
    method = method_of(resample_every=3, keep_prob_lr=0.1, lr=0.05)
    for number, batch in enumerate(batches_of(9)):
        before = method.keep_prob.copy()
        trace = method.train_step(batch)
        first = number % 3 == 0
        assert (method.keep_prob != before).any() == first
        assert trace.passes == ((2, 1) if first else (1, 1))
        assert (trace.loss_b is not None) == first
        assert (trace.gradient is not None) == first
        if first:
            mask = trace.mask_used_a
            masks = [(mask, True), (trace.mask_used_b, False)]
        else:
            masks = [(mask, True)]
            np.testing.assert_array_equal(trace.mask_used_a, mask)
        assert trace.executed_macs == executed(method.network, masks)
        np.testing.assert_array_equal(trace.keep_prob, method.keep_prob)


def test_pge_runs_one_forward_pass():
    method = method_of(estimator="pge")
    trace = method.train_step(batches_of(1)[0])
    assert trace.passes == (1, 1)
    assert set(trace.macs) == {"forward_a", "backward"}
    assert trace.executed_macs == executed(method.network, [(trace.mask_used_a, True)])
    assert trace.mask_drawn_b is trace.mask_used_b is trace.loss_b is None


def test_two_backward_passes_are_counted_twice():
    method = method_of(backward_masks=2)
    trace = method.train_step(batches_of(1)[0])
    masks = [(trace.mask_used_a, True), (trace.mask_used_b, True)]
    assert trace.executed_macs == executed(method.network, masks)
    ratio = [count_macs(method.network, SHAPE, mask).macs for mask, _ in masks]
    assert trace.cost_ratio == pytest.approx(sum(ratio) / 2 / method.dense_count.macs, rel=1e-12)


def test_filters_masked_before_batch_norm_run_dense_and_differ():
    traces = []
    for position in ("after-norm", "filter"):
        method = method_of(mask_position=position, width=0.5)
        for unit in method.network.units().values():
            if unit.norm is not None:
                unit.norm.beta.data[...] = 0.5  # what leaks
        traces.append(method.train_step(batches_of(1)[0]))
    after, filtered = traces
    np.testing.assert_array_equal(after.mask_used_a, filtered.mask_used_a)
    assert abs(after.loss_a - filtered.loss_a) > 1e-3
    whole = np.ones(method.network.n_maskable)
    assert filtered.executed_macs == executed(method.network, [(whole, True), (whole, False)])
    assert filtered.cost_ratio == 1.0


def estimate_by_hand(name, trace, alpha, average):
    """H^alpha grad Phi from what the trace holds, by the formulas of the estimators."""
    s, masks, losses = trace.keep_prob_before, trace.masks_drawn.astype(float), trace.losses
    scale = (s * (1 - s)) ** (alpha - 1)
    if name == "vr-pge-multi":
        mean = sum(losses) / len(losses)
        total = sum((loss - mean) * (m - s) for loss, m in zip(losses, masks, strict=True))
        return total / (len(losses) - 1) * scale
    if name == "disarm":
        both = (masks[0] - masks[1]) / 2 * np.maximum(s, 1 - s)
        return (losses[0] - losses[1]) * both * scale
    if name == "arm":
        np.testing.assert_array_equal(masks[0], trace.uniform < s)
        np.testing.assert_array_equal(masks[1], 1 - trace.uniform <= s)
        return (losses[0] - losses[1]) * (0.5 - trace.uniform) * scale
    assert name == "pge-moving-average"
    return (losses[0] - average) * (masks[0] - s) * scale


@pytest.mark.parametrize(
    ("name", "n_masks"),
    [
        ("vr-pge-multi", 2),
        ("vr-pge-multi", 5),
        ("disarm", 2),
        ("arm", 2),
        ("pge-moving-average", 1),
    ],
)
def test_every_estimator_trains_with_its_masks_and_passes(name, n_masks):
    hyper = {"estimator": name, "keep_prob_lr": 0.02, "keep_prob_optimizer": "sgd", "lr": 0.05}
    method = method_of(width=0.5, n_masks=max(n_masks, 2), **hyper)
    average = None
    for batch in batches_of(5):
        network = clone(method.network)
        trace = method.train_step(batch)
        assert trace.passes == (n_masks, 1)
        assert len(trace.losses) == len(trace.masks_drawn) == len(trace.masks_used) == n_masks
        passes = [(mask, i == 0) for i, mask in enumerate(trace.masks_used)]
        assert trace.executed_macs == executed(method.network, passes)
        for loss, mask in zip(trace.losses, trace.masks_used, strict=True):
            small = cut(network, mask).network
            logits = small(batch.images, training=True)
            assert F.cross_entropy(logits, batch.labels).item() == pytest.approx(loss, rel=1e-6)
        if name == "pge-moving-average" and average is not None:
            assert trace.baseline == pytest.approx(average)
        else:  # what the estimator didn't use isn't in its trace
            assert trace.baseline is None
        wanted = estimate_by_hand(name, trace, 0.5, trace.losses[0] if average is None else average)
        np.testing.assert_allclose(trace.gradient, wanted, rtol=1e-9, atol=1e-12)
        average = trace.losses[0] if average is None else 0.9 * average + 0.1 * trace.losses[0]
    assert np.ptp(method.keep_prob) > 0


def test_independent_masks_of_a_step_differ_and_do_not_depend_on_their_number():
    traces = []
    for n_masks in (3, 4):
        method = method_of(estimator="vr-pge-multi", n_masks=n_masks)
        traces.append(method.train_step(batches_of(1)[0]))
    three, four = (trace.masks_drawn for trace in traces)
    np.testing.assert_array_equal(three, four[:3])
    assert len({mask.tobytes() for mask in four}) == 4


def test_the_macs_budget_is_kept_and_binds():
    method = method_of(budget_in="macs", keep_prob_lr=0.1, lr=0.05, width=0.5, seed=4)
    costs, constant = linear_macs_cost(method.network, SHAPE)
    budget, bound = 0.5 * costs.sum(), 0
    for batch in batches_of(12):
        trace = method.train_step(batch)
        # The nearest point s = clip(z - v c) by 100 halvings of v.
        low, high = 0.0, 1.0
        for _ in range(100):
            middle = (low + high) / 2
            fits = costs @ np.clip(trace.z - middle * costs, 0, 1) <= budget
            low, high = (low, middle) if fits else (middle, high)
        np.testing.assert_allclose(
            method.keep_prob, np.clip(trace.z - high * costs, 0, 1), atol=1e-9
        )
        bound += trace.multiplier > 0
        spent = costs @ method.keep_prob
        assert method.macs_bound() == pytest.approx(constant + spent)
        assert expected_macs(method.network, SHAPE, method.keep_prob) <= constant + spent + 1e-6
    assert bound > 0


def test_a_trace_of_a_search_step_leaves_nothing_out():
    method = method_of()
    trace = method.train_step(batches_of(1)[0])
    others = {"uniform", "baseline", "coin"}  # of antithetic pairs, one pass, and the control
    assert {f.name for f in fields(StepTrace) if getattr(trace, f.name) is None} == others
    n = method.network.n_maskable
    for name in ("score", "preconditioner", "gradient", "z", "keep_prob", "keep_prob_before"):
        array = getattr(trace, name)
        assert array.shape == (n,)
        assert array.dtype == np.float64
    for name in ("mask_drawn_a", "mask_drawn_b", "mask_used_a", "mask_used_b"):
        assert getattr(trace, name).dtype == bool
    for which, mask in (("a", trace.mask_used_a), ("b", trace.mask_used_b)):
        assert sum(trace.live_channels[which].values()) == mask.sum()
    phases = {"sample", "cut", "forward_a", "forward_b", "backward", "structure", "update", "paste"}
    assert set(trace.seconds) == phases
    assert set(trace.macs_dense) == set(method.network.units())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_keep_prob_stays_in_the_allowed_set(optimizer, floor):
    lr = 0.3 if optimizer == "adam" else 5.0
    method = method_of(
        keep_rate=0.3, keep_prob_optimizer=optimizer, keep_prob_lr=lr, keep_prob_floor=floor
    )
    for batch in batches_of(20):
        s = method.train_step(batch).keep_prob
        assert s.sum() <= method.budget * (1 + 1e-12)
        assert s.min() >= floor
        assert s.max() <= 1.0 - floor


def test_masks_are_keyed_by_seed_and_step():
    drawn = [
        [t.mask_drawn_a for t in map(method_of(seed=seed).train_step, batches_of(3))]
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0][0], drawn[0][1])


def searched(**hyper):
    method = method_of(search=8, total=12, keep_prob_lr=0.1, lr=0.02, **hyper)
    for batch in batches_of(8):
        method.train_step(batch)
    return method


def test_final_mask_is_the_first_sample_or_the_most_probable_channels():
    method = searched()
    masks = method.final_masks()
    assert len(masks["samples"]) == 10
    np.testing.assert_array_equal(method.choose_final([]), masks["samples"][0])
    method = searched(final_mask="top-k")
    chosen = method.choose_final([])
    kept = top_k_mask(method.keep_prob, round(method.keep_prob.sum()))
    assert not (kept & ~chosen).any()
    assert method.keep_prob[kept].min() >= method.keep_prob[~chosen].max()


def test_best_of_10_has_the_smallest_loss_on_the_batches_it_is_given():
    method, batches = searched(final_mask="best-of-10"), batches_of(3, n=16, seed=5)
    losses = []
    for mask in method.final_masks()["samples"]:
        small = cut(method.network, mask).network
        recalibrate(small, batches)
        logits = [F.cross_entropy(small(b.images), b.labels).item() for b in batches]
        losses.append(np.mean(logits))
    chosen = method.choose_final(iter(batches))
    np.testing.assert_array_equal(chosen, method.final_masks()["samples"][int(np.argmin(losses))])
    assert np.argmin(losses) != 0  # else this test shows nothing
    # An iterator serves both the choice and the recalibration.
    for given in (batches, iter(batches)):
        final = method.finalize(given)
        small = cut(method.network, chosen).network
        recalibrate(small, batches)
        found = final.host_state()
        for name, array in small.host_state().items():
            np.testing.assert_array_equal(found[name], array, name)


def test_fine_tuning_trains_the_final_mask_alone_and_waits_for_its_start():
    method = searched()
    batches = batches_of(4, seed=9)
    with pytest.raises(ValueError, match="start_fine_tuning"):
        method.train_step(batches[0])
    method.start_fine_tuning(batches)
    chosen, s = method.choose_final([]), method.keep_prob.copy()
    before = {name: array.copy() for name, array in method.network.host_state().items()}
    for batch in batches:
        trace = method.train_step(batch)
        np.testing.assert_array_equal(trace.mask_used_a, chosen)
        assert trace.passes == (1, 1)
        assert trace.executed_macs == executed(method.network, [(chosen, True)])
    np.testing.assert_array_equal(method.keep_prob, s)
    method.end_epoch()
    twin = clone(method.network)
    for array in twin.state().values():
        array[...] = 0.0
    sub = cut(twin, chosen)
    for array in sub.network.state().values():
        array[...] = 1.0
    sub.paste()
    pasted = twin.host_state()
    for name, array in method.network.host_state().items():
        inside = pasted[name] == 1.0
        np.testing.assert_array_equal(array[~inside], before[name][~inside], name)
        assert (array != before[name])[inside].mean() > 0.9, name


def test_recalibrate_averages_the_batches_statistics():
    network, batches = network_of().astype(np.float64), batches_of(3)
    batches = [Batch(b.index, b.images.astype(np.float64), b.labels) for b in batches]
    network.nodes["conv1"].norm.running_mean[...] = 17.0
    momenta = [u.norm.momentum for u in network.units().values() if u.norm]
    weights = {name: p.numpy().copy() for name, p in network.named_parameters()}
    meter = get_backend().meter
    recalibrate(network, batches)
    assert meter.total("recalibrate") == meter.total() == 3 * 8 * count_macs(network, SHAPE).macs
    weight = network.nodes["conv1"].transform.weight
    outs = [F.conv2d(b.images, weight, padding=1).numpy() for b in batches]
    norm = network.nodes["conv1"].norm
    mean = np.mean([out.mean(axis=(0, 1, 2)) for out in outs], axis=0)
    var = np.mean([out.var(axis=(0, 1, 2), ddof=1) for out in outs], axis=0)
    np.testing.assert_allclose(host(norm.running_mean), mean, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(host(norm.running_var), var, rtol=1e-10)
    assert [u.norm.momentum for u in network.units().values() if u.norm] == momenta
    for name, parameter in network.named_parameters():
        np.testing.assert_array_equal(parameter.numpy(), weights[name])


def test_evaluate_weighs_batches_by_their_images():
    network, (one, two) = network_of(), batches_of(2)
    two = Batch(1, two.images[:3], two.labels[:3])
    before = {name: array.copy() for name, array in network.host_state().items()}
    accuracy, loss = evaluate(network, [one, two])
    logits = np.concatenate([network(b.images).numpy() for b in (one, two)]).astype(np.float64)
    labels = np.concatenate([one.labels, two.labels])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert accuracy == (logits.argmax(axis=1) == labels).mean()
    assert loss == pytest.approx(-log_p[np.arange(11), labels].mean(), rel=1e-6)
    for name, array in network.host_state().items():
        np.testing.assert_array_equal(array, before[name])


def test_clipping_takes_one_norm_of_weights_and_keep_prob():
    network = network_of()
    optimizer = build_optimizer("sgd", network, Hyper())
    rng = np.random.default_rng(0)
    for parameter in network.parameters()[1:]:  # the first has no gradient
        grad = rng.normal(size=parameter.shape).astype(np.float32)
        parameter.grad = to_device(grad)
    before = [p.grad for p in network.parameters()[1:]]
    extra = rng.normal(size=5)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in host(before)) + (extra**2).sum())
    for off in (0.0, norm * 1.01):
        assert clip_gradients(optimizer, off, extra) is extra
        assert all(p.grad is g for p, g in zip(network.parameters()[1:], before, strict=True))
    clipped = clip_gradients(optimizer, 1.0, extra)
    np.testing.assert_allclose(clipped, extra / norm, rtol=1e-5)
    for parameter, grad in zip(network.parameters()[1:], before, strict=True):
        np.testing.assert_allclose(host(parameter.grad), host(grad) / norm, rtol=1e-5)
        assert parameter.grad.dtype == np.float32
    assert network.parameters()[0].grad is None
    assert clip_gradients(optimizer, 1.0) is None


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_keep_rates(rate):
    with pytest.raises(ValueError, match=r"keep rate .* in \(0, 1\]"):
        checked_budget(network_of(), rate)
    options = {"name": "vgg-tiny", "width": 0.25, "in_channels": 1}
    with pytest.raises(ValueError, match="keep rate"):
        Narrow(network_of(), Hyper(keep_rate=rate), Plan(1, 1, 8, SHAPE), options)


def test_the_budget_must_cover_the_groups_that_may_not_be_empty():
    network = network_of()  # 4 + 8 + 8 channels in three groups
    assert checked_budget(network, 0.15) == pytest.approx(3.0)
    with pytest.raises(ValueError, match=r"0\.149 of 20 channels.*3 groups.*0\.1500"):
        checked_budget(network, 0.149)
    # Stem, stage 2 and stage 3 carry the shortcut; residual branches may be empty.
    assert checked_budget(build("resnet20"), 3 / 448) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "reinforce"}, "unknown estimator 'reinforce'.*vr-pge"),
        ({"final_mask": "best"}, "unknown final mask 'best'.*top-k"),
        ({"keep_prob_optimizer": "lion"}, "'lion'.*adam or sgd"),
        ({"optimizer": "lion"}, "'lion'.*sgd or adam"),
    ],
)
def test_unknown_names(changes, message):
    with pytest.raises(ValueError, match=message):
        method_of(**changes)


def test_state_of_another_network_is_refused():
    state = method_of().state()
    with pytest.raises(ValueError, match="has shape"):
        method_of(width=0.5).load_state(state)
    for name in ("keep_prob", "step", "optimizer/conv1.transform.weight/velocity"):
        with pytest.raises(ValueError, match=f"lacks '{name}'"):
            method_of().load_state({key: a for key, a in state.items() if key != name})
    with pytest.raises(ValueError, match=r"keep_prob.*shape"):
        method_of().load_state(state | {"keep_prob": np.zeros(3)})


def test_the_base_class_has_no_step():
    method = Method(network_of(), Hyper(), Plan(1, 1, 8, SHAPE))
    with pytest.raises(TypeError, match="train_step"):
        method.train_step(batches_of(1)[0])
    with pytest.raises(TypeError, match="finalize"):
        method.finalize([])
    assert list(method.candidates()) == []


def test_learning_rates_follow_their_schedules():
    plan, batches = Plan(8, 8, 8, SHAPE), batches_of(8)
    dense = Dense(network_of(), Hyper(lr=0.2, schedule="step", warmup=0.25), plan)
    seen = []
    for batch in batches:
        seen.append(dense.lr())
        dense.train_step(batch)
        assert dense.optimizer.lr == seen[-1]
    np.testing.assert_allclose(seen, [0, 0.1, 0.2, 0.2, 0.2, 0.02, 0.02, 0.002])

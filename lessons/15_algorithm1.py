# %% [markdown]
# # 15 · Algorithm 1 by hand
#
# **You will see** that one step of the paper's Algorithm 1, written out in NumPy around two cut
# networks, gives all that `minicst step` prints by channel, and that only two numbers pass from the
# network to keep_prob.
#
# **You need** lessons 05 (cut), 11 (VR-PGE) and 14 (projection).
#
# **In the paper** Algorithm 1 [alg1]; its line 6 is (VR-PGE) [vr-pge] in the update of Eq. (5)
# [eq5], then the projection [projection].
#
# **Takes** 1 second on 2 cores.

# %%
import numpy as np

import minicst.functional as F
from minicst import sparse
from minicst.autograd import no_grad
from minicst.inspect_step import StepSettings, run_step, step_json
from minicst.job import prepare
from minicst.methods.completely_sparse import CompletelySparse
from minicst.randomness import rng_for

job, trace = run_step(StepSettings(network="vgg-tiny", width=0.1))  # the package's step, done
fresh = prepare(job.settings)  # the same network, data and settings, before that step

# %% [markdown]
# The paper's line numbers stand in the comments. Line 1: s = ρ1 = .5 for all 8 channels, so the
# budget is K = 4. Line 4: 64 digits. Line 5: *two* masks, bit c being 1 where a uniform number
# falls below s_c. Random streams have names (seed, letter, step), so you draw what the package
# drew. Each mask happens to have 5 channels: K holds on average only.

# %%
network, eta = fresh.full_network, 0.1
s, K = np.full(8, 0.5), 4.0  # 1: initialize w, let s = ρ1
batch = next(iter(fresh.loader.epoch(0)))  # 4: sample a mini-batch
uniform_a, uniform_b = (rng_for(0, "mask", letter, 0).random(8) for letter in "ab")
mask_a, mask_b = uniform_a < s, uniform_b < s  # 5: sample m(1), m(2) from p(m|s)
print("m  =", mask_a.astype(int), " m′ =", mask_b.astype(int))

# %% [markdown]
# **Two forward passes: what for?** L(m) trains the weights (over masks, ∇_w L(m) has the mean ∇_w
# E L: unbiased, too), and both losses train s: L(m′) is there to be subtracted, since it holds what
# all masks have in common at these weights and on this batch. So both passes see the same weights
# and images. Pass b has no tape; its batch norm uses the batch's statistics and leaves the running
# ones alone. Nothing is learned yet: expect ln 10 = 2.3.

# %%
before = {name: array.copy() for name, array in network.state().items()}
sub_a, sub_b = sparse.cut(network, mask_a), sparse.cut(network, mask_b)
with no_grad():  # 6: L_B(w, m(2))
    logits = sub_b(batch.images, training=True, track=False)
    loss_b = F.cross_entropy(logits, batch.labels).item()
tape = F.cross_entropy(sub_a(batch.images, training=True), batch.labels)  # 6: L_B(w, m(1))
loss_a = tape.item()
print(f"L(m) = {loss_a:.3f}, L(m′) = {loss_b:.3f}, difference {loss_a - loss_b:+.4f}")

# %% [markdown]
# **One backward pass**, through sub-network a alone: of conv2 it has 2 of 3 filters and both
# inputs, 2·9·2 = 36 of 54 weights. Sub-network b gets no gradient. With backward counted as twice a
# forward, a step costs (2 + 2) fS against 3 fD of a dense step: 4/3 · .633 = .84 for the masks
# drawn here. The meter counts .83: no pass needs an input gradient of the first layer.

# %%
tape.backward()  # 6: ∇_w L_B(w, m(1))
for name, sub in (("a", sub_a), ("b", sub_b)):
    weight = sub.network.nodes["conv2"].transform.weight
    print("conv2 of", name, weight.shape, "gradient:", np.shape(weight.grad) or None)
print(f"fS/fD {trace.cost_ratio:.3f}, MACs {trace.executed_macs / trace.dense_macs:.2f} of dense")

# %% [markdown]
# **keep_prob.** From here on there is no network: the two losses are all that crosses over. At s =
# 1/2 the score is (m - s)/(s (1 - s)) = ±2 and H^½ = √(s (1 - s)) = 1/2, so every entry of the
# gradient is ±(L(m) - L(m′)) = ±.0278. m did better, so its 5 channels rise by η·.0278 and the 3
# others fall. Then Σz is 2·.00278 over K, and the projection takes v = .00556/8 = .0007 off each.

# %%
score = (mask_a - s) / (s * (1 - s))
h = np.sqrt(s * (1 - s))  # Hᵅ(s), α = 1/2
gradient = (loss_a - loss_b) * h * score
z = s - eta * gradient  # 6: z = s - η (L(m(1)) - L(m(2))) Hᵅ(s) (m(1) - s) / (s (1 - s))
v = (z.sum() - K) / 8  # no entry leaves [0, 1], so the root is this simple
s_new = np.clip(z - v, 0, 1)  # 6: s <- proj_S(z)
print("c    s  m m′ score H^½ gradient      z  new s")
for row in zip(range(8), s, mask_a, mask_b, score, h, gradient, z, s_new, strict=True):
    print("{} {:.2f} {:2d} {:2d} {:+5.0f} {:.1f}  {:+.4f} {:.4f} {:.4f}".format(*row))

# %% [markdown]
# **Weights.** w ← w - .1 (∇L + 5e-4 w): SGD with weight decay, momentum still 0. Line 6 writes s
# first, then w; the order is free, as both losses were taken before either moved. L(m′) after the
# step of w would compare weights as well as masks. Paste: 36 entries of conv2 move, 18 don't.

# %%
for _, parameter in sub_a.network.named_parameters():
    parameter.data -= 0.1 * (parameter.grad + 5e-4 * parameter.data)  # 6: w <- w - η ∇_w L_B
sub_a.paste()
after = network.state()
for name in ("conv2.transform.weight", "conv2.norm.gamma", "conv2.norm.running_mean"):
    print(name, np.count_nonzero(after[name] != before[name]), "of", before[name].size, "moved")

# %% [markdown]
# **What η does.** Ten times η moves s ten times as far, here without touching 0 or 1. At η = 100, z
# is 3.3 or -2.3 and is clipped: three channels get 0, five share the budget, .8 each. One
# difference of .03 has decided three channels for good: at s = 0 the score is 0, and the projection
# only lowers. (Line 6 is a step of SGD; App. B has Adam step by the same gradient, lesson 16.)

# %%
for rate in (0.1, 1.0, 10.0, 100.0):
    projected, multiplier = sparse.project_capped_simplex(s - rate * gradient, K)
    print(f"η = {rate:5}: v = {multiplier:.2g}, new s[0], s[4] =", projected[[0, 4]].round(3))

# %% [markdown]
# **The second step** draws other masks: its streams have another name, and s has moved a little. m
# has 7 channels now and loses .15 more than m′, so all 7 fall in z, five times as far as z moved
# before; the sum is below K, so v = 0. A single step is mostly noise.

# %%
again = prepare(job.settings)
method = CompletelySparse(again.full_network, job.settings.hyper(), job.plan)
batches = again.loader.epoch(0)
for number in range(2):
    step = method.train_step(next(batches))
    print(number, "m =", step.mask_drawn_a.astype(int), " m′ =", step.mask_drawn_b.astype(int))
    print(f"  L(m) - L(m′) = {step.loss_a - step.loss_b:+.4f}, new s =", step.keep_prob.round(3))

# %% [markdown]
# **Empty groups.** A mask may leave conv1 no channel, and nothing would pass on. The package then
# keeps the group's most probable channel (the first of equals) in the mask that is *used*; the
# score takes the mask as *drawn*, so the estimator stays unbiased for the loss of the repaired
# network. With seed 4 channel 0 runs, and its gradient has the sign of an absent channel's.

# %%
other = run_step(StepSettings(network="vgg-tiny", width=0.1, seed=4))[1]
print("drawn", other.mask_drawn_a.astype(int), "used", other.mask_used_a.astype(int))
print(f"L(m) - L(m′) = {other.loss_a - other.loss_b:+.3f}, gradient[0] = {other.gradient[0]:+.3f}")

# %% [markdown]
# **Equal to the package.** `minicst step --network vgg-tiny --width 0.1` prints the table above
# with the same numbers, and MACs by layer and pass beside it; `step_json` is what it prints with
# `--json`.

# %%
shown = step_json(job, trace)
for name, mine in (("score", score), ("gradient", gradient), ("z", z), ("keep_prob", s_new)):
    by_channel = np.concatenate([group[name] for group in shown["groups"].values()])
    assert np.allclose(by_channel, mine, rtol=0, atol=1e-6), name
assert np.array_equal(trace.masks_drawn, [mask_a, mask_b])
assert np.allclose([shown["loss_a"], shown["loss_b"], shown["multiplier"]], [loss_a, loss_b, v])
assert np.allclose(gradient, sparse.vr_pge(loss_a, loss_b, mask_a, s, 0.5))
assert np.allclose(s_new, sparse.project_capped_simplex(z, K)[0])
for name, array in job.full_network.state().items():
    assert np.allclose(after[name], array, rtol=0, atol=1e-6), name
print("masks, losses, score, gradient, z, v, s, all weights: equal to the package's step")

# %% [markdown]
# **Exercise 1.** Write `f(loss_a, loss_b, mask_a, s, eta)` that returns z of line 6, α = 1/2.
# **Exercise 2.** Write `f(drawn, used)`, each (2, 8): return the mask whose score enters line 6.


# %%
def check_z(answer):
    """answer(loss_a, loss_b, mask_a, s, eta): z of Algorithm 1, line 6."""
    got = np.asarray(answer(1.0, 1.5, np.array([1, 0], bool), np.array([0.2, 0.5]), 0.1))
    if np.allclose(got, [0.1, 0.55]):
        return "wrong: the sign; m lost less, so what it kept must rise"
    if np.allclose(got, [0.45, 0.4]):
        return "wrong: H^½ is missing; divide by √(s (1 - s)), not by s (1 - s)"
    return "right: .3 and .45" if np.allclose(got, [0.3, 0.45]) else f"wrong: {got}, not .3 and .45"


def check_scored_mask(answer):
    """answer(drawn, used): the mask that the score function takes."""
    got = np.asarray(answer(np.array([[0] * 8, [0, 1] * 4]), np.array([[1] + [0] * 7, [0, 1] * 4])))
    if np.array_equal(got, [1] + [0] * 7):
        return "wrong: used masks have another distribution than p(m|s); their score has a mean"
    if np.array_equal(got, [0, 1] * 4):
        return "wrong: that is m′, which is there to be subtracted"
    return "right: m as drawn" if np.array_equal(got, [0] * 8) else f"wrong: {got}; one mask, (8,)"

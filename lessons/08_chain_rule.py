# %% [markdown]
# # 08 · Why chain-rule masks need dense passes
#
# **You will see** that the gradient of a mask bit isn't 0 where the bit is 0, so that methods
# which take it by the chain rule run what the mask was to save: they cost 1.00 of dense training.
#
# **You need** lessons 05 (masks, cut) and 07 (multiply-adds, ρ against ρ²).
#
# **In the paper** Sec. 3, Figure 1, Eq. (1) [eq1]; forward ρ at best, backward dense [sec3-cost].
#
# **Takes** 3 seconds on 2 cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minicst.functional as F
from minicst import Parameter, Tensor, data, models, sparse
from minicst.data import Batch
from minicst.methods import CompletelySparse, GumbelSoftmax, Hyper, Plan, StraightThrough, gated

plt.style.use("minicst.style")
digits = data.load_dataset("digits")
x = ((digits.train_images / digits.max_value - digits.mean) / digits.std)[:64]
labels = digits.train_labels[:64]

# %% [markdown]
# Figure 1 of the paper: a fully connected network, third neuron pruned. Each of 4 neurons has z_i
# = w_iᵀ x_in, the mask makes it x̂_i = m_i z_i; then tanh (slope 1 at 0, where ReLU's is a
# convention) and a second layer. Backward, the error ∂ℓ/∂x̂ comes down from the loss and forks:
# ∂ℓ/∂x̂ · m goes on to z and w, and m gets ∂ℓ/∂m = Σ ∂ℓ/∂x̂ · z.

# %%
rng, x_in = np.random.default_rng(0), x.reshape(64, -1)
w, v, y = rng.normal(0, 0.2, (64, 4)), rng.normal(0, 1, (4, 10)), np.eye(10)[labels]
m, losses, z = np.array([1.0, 1.0, 0.0, 1.0]), [], x_in @ w
for step in (1e-6, -1e-6, 0.0):  # m₃ moved up, moved down, and as it is
    p = np.exp(np.tanh(z * (m + step * np.eye(4)[2])) @ v)
    p /= p.sum(axis=1, keepdims=True)
    losses.append(-np.log(p[y == 1]).mean())
error = ((p - y) / 64) @ v.T * (1 - np.tanh(z * m) ** 2)  # ∂ℓ/∂x̂, (64, 4)
print("mean |∂ℓ/∂x̂| ·64, by neuron:", (np.abs(error).mean(axis=0) * 64).round(2))
print("mean |w_iᵀ x_in|, by neuron:", np.abs(z).mean(axis=0).round(2))

# %% [markdown]
# Nothing in these two lines tells that neuron 3 is pruned. The weights do: their gradient x_inᵀ
# (∂ℓ/∂x̂ · m) is exactly 0 in column 3. **Eq. (1)** is the other branch, ∇s₃ℓ = ∂ℓ/∂x̂₃ · (w₃ᵀ
# x_in) · ∂m₃/∂s₃: m₃ is no factor, so it needn't be 0. It tells what a little of the neuron would
# do to the loss, not what all of it would; moving m₃ by ±10⁻⁶ must show the same number.

# %%
grad_m = (error * z).sum(axis=0)
print("largest |∂ℓ/∂w|, by neuron:", np.abs(x_in.T @ (error * m)).max(axis=0).round(3))
print("∂ℓ/∂m, by neuron:          ", grad_m.round(3))
print(f"∂ℓ/∂m₃ by differences: {(losses[0] - losses[1]) / 2e-6:.3f}")

# %% [markdown]
# s_i, its keep_prob, is the probability that m_i = 1. In ∂m/∂s methods differ. With U uniform in
# (0, 1) **STE** (straight-through) draws m = 1[U < s], pretends ∂m/∂s = 1; **Gumbel-softmax** has a
# soft m = sigmoid((logit s + ln((1-U)/U)) / T), of true slope. That's a number a channel; the bill
# is the rest. In lesson 05's network and mask bits 1, 3, 7 (from 0) are 0: those filters get 0, the
# bits don't. (Bit 0 is conv1's only live one, and conv2's batch norm takes its scale away.)

# %%
network = models.build("vgg-tiny", in_channels=1, width=0.1).astype(np.float64)
mask = np.array([1, 0, 1, 0, 1, 1, 1, 0], bool)
run = gated(network, mask)
F.cross_entropy(run(x, training=True, track=False), labels).backward()
names = ("conv1", "conv2", "conv3")
filters = [np.abs(f).max() for name in names for f in network.nodes[name].transform.weight.grad]
print("m, bit by bit:             ", *(f"{bit:6d}" for bit in mask))
print("filter's largest |gradient|", *(f"{value:6.3f}" for value in filters))
print("∂ℓ/∂m, bit by bit:         ", *(f"{value:6.3f}" for value in run.mask.grad))

# %% [markdown]
# **Why is backward dense for STE?** The gradient of a pruned channel's s needs the error that
# arrives at that channel, ∂ℓ/∂x̂₃: backward must lead to every channel, pruned or not. It also
# needs the channel's output w₃ᵀ x_in, so forward must compute every output; it may skip only
# inputs that are 0, ρ of the cost in place of ρ². With backward as twice forward (lesson 07), a
# step costs ρ + 2 of 3: a saving of 3/(2 + ρ), 1.2 at ρ = 1/2, never above 1.5.

# %%
dense = sparse.count_macs(network, (8, 8, 1)).executed(1, backward=True)
cut = sparse.count_macs(network, (8, 8, 1), mask).executed(1, backward=True)
paper = sparse.chain_rule_macs(network, (8, 8, 1), mask)
least = sparse.chain_rule_macs(network, (8, 8, 1), mask, dense_backward=False)
for kind in ("forward", "weight_gradient", "input_gradient"):
    total = [sum(layer[kind] for layer in table.values()) for table in (dense, paper, least, cut)]
    shares = [f"{count / total[0]:.2f}" for count in total[1:]]
    print(f"{kind:15} chain rule, paper {shares[0]}  0/1 masks {shares[1]}  cut {shares[2]}")
print(f"saving by the paper at ρ = .5: {sparse.chain_rule_saving(0.5):.2f}")

# %% [markdown]
# **What doesn't hold** is "dense" to the letter. With bits that are exactly 0, ∂ℓ/∂x̂ · 0 goes
# further down: the error must *reach* a pruned channel, but stops there. So the input gradient
# takes all inputs but only live filters (ρ), the weight gradient live pairs (ρ²), a saving of
# 3/(2ρ + ρ²). The paper argues for dense, GrowEfficient runs dense (Remark 2), and soft masks have
# no zeros to skip.

# %%
rho = np.linspace(0.05, 1, 96)
fig, ax = plt.subplots()
ax.semilogy(rho, 3 / (4 * rho**2), "-", label="Algorithm 1: 3/(4ρ²)")
ax.semilogy(rho, 3 / (2 * rho + rho**2), "--", label="chain rule, 0/1 masks at best: 3/(2ρ + ρ²)")
ax.semilogy(rho, 3 / (2 + rho), ":", label="chain rule, the paper's bound: 3/(2 + ρ)")
ax.axhline(1, color="C6", linewidth=1, label="STE and Gumbel as they run: 1")
ax.set(xlabel="keep rate ρ (share of channels)", ylabel="saving in multiply-adds (times)")
ax.set_title("What a training step saves over dense, by keep rate")
legend = ax.legend()

# %% [markdown]
# **The meter running**, 20 steps on 40 channels (width .5) with learning rates 0, all at ρ = 1/2.
# STE and Gumbel run the dense network: 1.00. Algorithm 1 has two forward passes and one backward
# pass at about ρ² = 1/4: 4ρ²/3 = .33. (Above ρ = .87, 4ρ² > 3: it costs more than dense.)

# %%
batch, plan = Batch(0, x, labels), Plan(100, 100, 64, (8, 8, 1))
for method in (StraightThrough, GumbelSoftmax, CompletelySparse):
    wide = models.build("vgg-tiny", in_channels=1, width=0.5).astype(np.float64)
    trainer = method(wide, Hyper(lr=0.0, keep_prob_lr=0.0), plan)
    traces = [trainer.train_step(batch) for _ in range(20)]
    share = np.mean([trace.executed_macs / trace.dense_macs for trace in traces])
    print(f"{trainer.name:18} {share:.2f}x the multiply-adds of dense, {traces[0].passes} passes")

# %% [markdown]
# **From scratch.** The eight-channel network with m on the tape, and dm/ds of each kind. As m ≥ 0,
# the bit may stand behind ReLU and pooling, m · max(z) = max(m z), where the tape sees the slope
# at m = 0. The package must give the same gradient of keep_prob.


# %%
def mask_gradient(m):
    m, h = Parameter(m), Tensor(x)
    for name in names:
        unit = network.nodes[name]
        h = F.conv2d(h, unit.transform.weight, padding=1)
        h = F.relu(F.batch_norm(h, unit.norm.gamma, unit.norm.beta))
        h = F.max_pool2d(h, 2) if name == "conv2" else h
        h = h * F.channel_slice(m, np.arange(8)[network.groups[name]])
    logits = network.nodes["classifier"].transform(F.global_avg_pool2d(h))
    F.cross_entropy(logits, labels).backward()
    return m.grad


# %%
for method in (StraightThrough, GumbelSoftmax):
    trainer = method(network, Hyper(lr=0.0, keep_prob_lr=0.05), plan)
    trace = [trainer.train_step(batch) for _ in range(5)][-1]  # s has moved, the weights haven't
    s, U = trace.keep_prob_before, trace.uniform
    by_hand = mask_gradient(trace.mask_used_a.astype(float)) * 1.0
    if method is GumbelSoftmax:  # T = 2/3
        soft = 1 / (1 + np.exp(-1.5 * (np.log(s / (1 - s)) + np.log((1 - U) / U))))
        by_hand = mask_gradient(soft) * 1.5 * soft * (1 - soft) / (s * (1 - s))
    assert np.allclose(trace.gradient, by_hand, rtol=0, atol=1e-12)
    print(f"{trainer.name}: gradient of keep_prob by hand equals the package's, to 1e-12")

# %% [markdown]
# **Exercise 1.** Write `f(error, z, m)` that returns STE's gradient of s; error = ∂ℓ/∂x̂ and z are
# (images, neurons). **Exercise 2.** Below which ρ does Algorithm 1, 3/(4ρ²), save more than the
# best that a chain-rule method with 0/1 masks could, 3/(2ρ + ρ²)? Give the number.


# %%
def check_ste(answer):
    """answer(error, z, m): STE's gradient of s."""
    got = np.asarray(answer(error, z, m))
    if got.shape == (64, 4):
        return "wrong: s is one number for the whole batch; add the images up"
    if got.shape == (4,) and np.allclose(got, (error * z * m).sum(axis=0)):
        return "wrong: with the factor m, a pruned neuron never learns that it was missed"
    right = got.shape == (4,) and np.allclose(got, grad_m)
    return "right: Σ error · z, m isn't in it" if right else "wrong: take the factors of Eq. (1)"


def check_crossing(answer):
    """answer: the keep rate at which both save the same."""
    if abs(answer - 0.5) < 0.01:
        return "wrong: at ρ = 1/2 it is 3.0 against 2.4; set 4ρ² = 2ρ + ρ²"
    right = abs(answer - 2 / 3) < 0.01
    return "right: 3ρ = 2" if right else "wrong: both save the same where 4ρ² = 2ρ + ρ²"

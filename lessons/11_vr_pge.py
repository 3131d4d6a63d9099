# %% [markdown]
# # 11 · VR-PGE, its symmetric twin, and why both are unbiased
#
# **You will see** that the loss of a second, independent mask takes away 97% of PGE's variance and
# nothing of its mean, and that using both masks both ways nearly halves the rest.
#
# **You need** lesson 10 (PGE's variance, and what a constant baseline does).
#
# **In the paper** Sec. 4.2.2, (L(m) - L(m′)) Hᵅ ∇ ln p(m|s) [vr-pge]; A.3, Eq. (13): the term of m′
# vanishes [eq13]. The symmetric form is the released code's.
#
# **Takes** 4 seconds on 2 cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minicst.functional as F
from minicst import data, models, optim, sparse
from minicst.data import Batch
from minicst.methods.mask_loss import MaskLoss
from minicst.sparse.estimators import vr_pge_multi
from minicst.sparse.masks import sample_antithetic_masks

plt.style.use("minicst.style")

# %% [markdown]
# The eight-channel network of lesson 09 and its 256 losses. As in lesson 10 all s_c = 1/2, the mean
# loss is 2.41, its standard deviation over masks 0.33, and PGE's variance 189.

# %%
digits = data.load_dataset("digits")
images = (digits.train_images / digits.max_value - digits.mean) / digits.std
network = models.build("vgg-tiny", in_channels=1, width=0.1).astype(np.float64)
optimizer = optim.SGD(network, lr=0.1, momentum=0.9)
for step in range(60):
    rows = np.random.default_rng(step).choice(len(images), 64, replace=False)
    optimizer.zero_grad()
    loss = F.cross_entropy(network(images[rows], training=True), digits.train_labels[rows])
    loss.backward()
    optimizer.step()
s = np.full(8, 0.5)
loss_of = MaskLoss(network, Batch(0, images[:64], digits.train_labels[:64]), s)
losses = sparse.loss_table(loss_of, 8)

# %% [markdown]
# **What are the two forward passes for?** L(m) alone says "2.08", and nobody knows whether that is
# good. So a second mask m′ is drawn and its loss measured at the same weights on the same batch:
# 2.08 - 2.97 = -0.89, m did better, and its channels get the credit. One loss is the other's
# baseline: two losses, one difference, no backward pass for s. (The one backward pass of a step,
# through m alone, is for the weights.) At s = 1/2 entries are ±2 · 0.89 instead of ±2 · 2.08.

# %%
rng = np.random.default_rng(11)
mask_a, mask_b = sparse.sample_mask(s, rng), sparse.sample_mask(s, rng)
loss_a, loss_b = loss_of(mask_a), loss_of(mask_b)
print("m", mask_a.astype(int), "m′", mask_b.astype(int), f"losses {loss_a:.3f} and {loss_b:.3f}")
print("PGE   ", (loss_a * (mask_a - s) / (s * (1 - s))).round(2))
print("VR-PGE", ((loss_a - loss_b) * (mask_a - s) / (s * (1 - s))).round(2))

# %% [markdown]
# **Unbiased, Eq. (13).** E (L(m) - L(m′)) ∇ ln p(m|s) has two terms. The first is PGE's, ∇Φ. The
# second is E L(m′) ∇ ln p(m|s): m′ is independent of m, so the mean of the product is the product
# of the means, E L(m′) · E ∇ ln p(m|s), and the score's mean is 0 (lesson 09). Summed over all
# 256 · 256 = 65,536 pairs, that must come out exactly.

# %%
masks, p = sparse.enumerate_masks(8), sparse.mask_probabilities(s)
gradient = sparse.expected_loss_gradient(losses, s)
score = (masks - s) / (s * (1 - s))
pair = p[:, None] * p  # p(m) p(m′), (256, 256)
second = losses[None, :, None] * score[:, None, :]  # L(m′) ∇ ln p(m), (256, 256, 8)
estimate = (losses[:, None] - losses)[..., None] * score[:, None, :]
print("mean of the second term is 0:", np.allclose(np.tensordot(pair, second), 0, atol=1e-12))
print("mean of VR-PGE is ∇Φ:", np.allclose(np.tensordot(pair, estimate), gradient, atol=1e-12))

# %% [markdown]
# **How much less variance?** At s = 1/2, E L² ‖∇ ln p‖² becomes E (L - L′)² ‖∇ ln p‖² = 32 · 2
# Var L: from 189.0 to 32 · 0.2134 - 0.258 = 6.57, a factor of 28.8. (Lesson 10's best constant left
# 3.16 with one pass. E L drifts, but with a mean of earlier losses for it one pass a step found as
# much planted structure at equal passes, README.) Hᵅ = (s (1 - s))ᵅ halves entries here at α = 1/2:
# both variances fall by 4, but so does the squared signal ‖Hᵅ ∇Φ‖². Alone it buys no information,
# it's a step size (lesson 12): of 115, the factor from 189.0 to 1.64, 4 is Hᵅ's.

# %%
for alpha in (0.0, 0.5):
    one, two = (sparse.estimator_moments(n, losses, s, alpha) for n in ("pge", "vr-pge"))
    print(f"α = {alpha}: PGE {one.total_variance:6.4g}, VR-PGE {two.total_variance:.3f},", end=" ")
    print(f"ratio {one.total_variance / two.total_variance:.1f}, signal² {one.mean @ one.mean:.4f}")

# %% [markdown]
# **Both ways.** If L(m′) may judge m, L(m) may judge m′. The mean of both estimates is
# (L(m) - L(m′)) Hᵅ (m - m′) / (2 s (1 - s)), for no pass more. Two estimates of variance v and
# covariance c have a mean of variance (v + c) / 2. Here c = ‖Hᵅ ∇Φ‖²: their product's mean, from
# -(L - L′)², keeps 2 L L′ only (E score = 0), 2 ‖Hᵅ ∇Φ‖². At α = 1/2: (1.643 + 0.0646) / 2 = 0.854.
# With k masks each loss is judged by the mean of the other k - 1 (`vr_pge_multi`; k = 2: as here):
# variance times passes falls from 2 · 0.854 = 1.71 towards the best constant's 3.16 / 4 = 0.79.

# %%
h = np.sqrt(s * (1 - s))  # Hᵅ at α = 1/2
estimate, target = estimate * h, h * gradient
mirror = np.swapaxes(estimate, 0, 1)  # m and m′ exchanged
both = (estimate + mirror) / 2
one_sided = np.tensordot(pair, (estimate**2).sum(axis=-1)) - target @ target
covariance = np.tensordot(pair, (estimate * mirror).sum(axis=-1)) - target @ target
symmetric = np.tensordot(pair, (both**2).sum(axis=-1)) - target @ target
print(f"one-sided {one_sided:.3f}, covariance {covariance:.4f}, ‖Hᵅ ∇Φ‖² {target @ target:.4f}")
print(f"symmetric {symmetric:.3f}, {symmetric / one_sided:.0%} of the one-sided variance")
print("from four masks:", vr_pge_multi(losses[20::75], masks[20::75], s).round(2))
for k in (2, 4, 16):
    k_masks = sparse.estimator_moments("vr-pge-multi", losses, s, n_masks=k).total_variance
    print(f"k = {k:2}: variance {k_masks:.3f}, times passes {k * k_masks:.2f}")

# %% [markdown]
# **Seen.** Channel 7's estimate in 20,000 draws at α = 1/2; the truth is -0.3207 / 2 = -0.160.
# PGE's is ±L(m), never within 1.7 of it. VR-PGE's is spread about it. The symmetric form is exactly
# 0 when both masks agree on the channel, half of the time: such a pair tells nothing about it, and
# the one-sided form reports noise. Variances must be near 47.25 / 8 = 5.9, then 0.2 and 0.1.

# %%
i, j = rng.integers(256, size=(2, 20_000))  # two masks a draw
three = {"pge": sparse.pge(losses[i], masks[i], s, 0.5)[:, 7]}
three |= {"vr-pge": estimate[i, j, 7], "vr-pge-symmetric": both[i, j, 7]}
fig, axes = plt.subplots(3, sharex=True, figsize=(7.2, 4.8))
for k, (ax, (name, values)) in enumerate(zip(axes, three.items(), strict=True)):
    print(f"{name:16} variance of channel 7's estimate: {values.var():.2g}")
    ax.hist(values, np.linspace(-3.6, 3.6, 145), color=f"C{k}", weights=np.full(20_000, 5e-3))
    ax.axvline(target[7], color="black", linestyle="--", linewidth=1)
    ax.set(ylabel=f"{name}\n% of draws", xlim=(-3.6, 3.6))
axes[0].set_title("Channel 7: PGE is never near the gradient (dashed), VR-PGE spreads about it")
_ = axes[2].set_xlabel("estimate of √(s (1 - s)) ∂Φ/∂s for channel 7, nats")

# %% [markdown]
# **Independence is all.** Why not take the most different m′, each bit flipped? At s = 1/2 that's a
# proper draw. But now m′ knows m: L(m′) pulls the mean as far as L(m), E (L - L′) ∇ ln p is *twice*
# ∇Φ, a bias as large as ∇Φ. At any s take m = (U < s), m′ = (1 - U < s): the factor is 1 / max(s_c,
# 1 - s_c), another for each channel, so the direction is wrong too. Such *antithetic* pairs need a
# formula of their own (DisARM). The package marks them, and VR-PGE refuses.

# %%
flipped = p @ ((losses - losses[::-1])[:, None] * score)  # mask 255 - i is mask i flipped
print("mean over ∇Φ:", (flipped / gradient).round(3))
try:
    sparse.vr_pge(2.0, 1.0, sample_antithetic_masks(s, rng)[0], s)
except ValueError as error:
    print("ValueError:", error)
a, b = np.divmod(np.arange(65_536), 256)  # all pairs
one = sparse.vr_pge(losses[a], losses[b], masks[a], s)
two = sparse.vr_pge_symmetric(losses[a], losses[b], masks[a], masks[b], s)
assert np.allclose([one, two], np.stack([estimate, both]).reshape(2, -1, 8))
terms, twin = sparse.mean_terms(losses, s), sparse.symmetric_variance(losses, s)
assert np.allclose([terms.policy_gradient, terms.baseline], [target, 0 * target])
assert np.allclose([twin.one_sided, twin.symmetric], [one_sided, symmetric])
assert np.allclose(sparse.antithetic_bias(losses, s, 0.0), flipped - gradient)
print("all 65,536 pairs, both terms of the mean, variances and bias equal the package's")

# %% [markdown]
# **Exercise 1.** Write `f(loss_a, loss_b, mask_a, mask_b, s)`, the symmetric form at α = 1/2.
# **Exercise 2.** Someone subtracts from each of 4 losses the mean of all 4, its own included, and
# averages the 4 estimates. What is the expectation, as a multiple of ∇Φ? (A number.)


# %%
def check_symmetric(answer):
    """answer(loss_a, loss_b, mask_a, mask_b, s): the estimate at alpha = 1/2."""
    s, a, b = np.array([0.2, 0.5, 0.9]), np.array([1, 0, 1]), np.array([0, 0, 1])
    got, want = np.asarray(answer(2.0, 1.0, a, b, s)), sparse.vr_pge_symmetric(2.0, 1.0, a, b, s)
    if np.allclose(got, 2 * want):
        return "wrong: the sum of the two estimates; their mean has a factor 1/2"
    if np.allclose(got, want / np.sqrt(s * (1 - s))):
        return "wrong: that's α = 0; Hᵅ with α = 1/2 leaves one root of s (1 - s) below"
    return "right: (1.25, 0, 0)" if np.allclose(got, want) else f"wrong: {got.round(3)}"


def check_own_included(answer):
    """answer: expectation over gradient."""
    reasons = {1: "each L_i is in its own baseline", 1 / 4: "that's the share which is lost"}
    if np.isclose(answer, 3 / 4):
        return "right: 1 - 1/k, so vr_pge_multi divides by k - 1 in place of k"
    return "wrong: " + reasons.get(answer, "write L_i - mean as (1 - 1/4) L_i - 1/4 of the others")

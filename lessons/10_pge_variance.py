# %% [markdown]
# # 10 · PGE's variance, and why a large L hurts
#
# **You will see** that one mask gives an unbiased estimate of ∇Φ which is useless alone: it takes
# 732 forward passes until the error is as small as the gradient, and the level of L is to blame for
# 98%.
#
# **You need** lesson 09 (∇Φ as an average over masks).
#
# **In the paper** Sec. 4.2.2, the estimator L(m) ∇ ln p(m|s) and its update (3) [pge], with the
# score (m - s) / (s (1 - s)) [score], and its variance E L²(m) ‖∇ ln p‖² - ‖∇Φ‖² [pge-var]: "large
# because L(m) is large".
#
# **Takes** 4 seconds on 2 cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minicst.functional as F
from minicst import data, models, optim, sparse
from minicst.data import Batch
from minicst.methods.mask_loss import MaskLoss

plt.style.use("minicst.style")
digits = data.load_dataset("digits")
images = (digits.train_images / digits.max_value - digits.mean) / digits.std
labels = digits.train_labels

# %% [markdown]
# The eight-channel network of lesson 09: 60 steps of dense training, then its 256 losses as a
# table. Here all s_c = 1/2, so every mask has the probability 1/256 and numbers come out round.

# %%
network = models.build("vgg-tiny", in_channels=1, width=0.1).astype(np.float64)
optimizer = optim.SGD(network, lr=0.1, momentum=0.9)
for step in range(60):
    rows = np.random.default_rng(step).choice(len(images), 64, replace=False)
    optimizer.zero_grad()
    loss = F.cross_entropy(network(images[rows], training=True), labels[rows])
    loss.backward()
    optimizer.step()
s = np.full(8, 0.5)
losses = sparse.loss_table(MaskLoss(network, Batch(0, images[:64], labels[:64]), s), 8)
masks, p = sparse.enumerate_masks(8), sparse.mask_probabilities(s)
gradient = sparse.expected_loss_gradient(losses, s)

# %% [markdown]
# **One sample.** Lesson 09 ended with ∇Φ = E L(m) ∇ ln p(m|s). Draw one mask instead of all: the
# policy gradient estimator, PGE, is g = L(m) (m - s) / (s (1 - s)). At s = 1/2 the score is ±2, so
# whatever the mask, g has the entries ±2 L(m), about ±5. The gradient's entries are below 0.33.

# %%
score = (masks - s) / (s * (1 - s))
i = 181  # some mask: bits 0, 2, 4, 5 and 7
print("mask", masks[i].astype(int), f"loss {losses[i]:.2f}")
print("estimate", (losses[i] * score[i]).round(2))
print("gradient", gradient.round(3))

# %% [markdown]
# **Its variance**, all channels together: E ‖g‖² - ‖E g‖² = E L² ‖∇ ln p‖² - ‖∇Φ‖². At s = 1/2,
# ‖∇ ln p‖² = 8 · 2² = 32 for every mask. E L² is mean² + variance = 2.41² + 0.327² = 5.91, and
# ‖∇Φ‖² = 0.258. So: 32 · 5.915 - 0.258 = 189.0, each channel with 23.6, a standard deviation of
# 4.9.

# %%
square = (score**2).sum(axis=1)  # ‖∇ ln p‖², (256,)
variance = p @ (losses**2 * square) - gradient @ gradient
print(f"E L² {p @ losses**2:.3f}, mean {p @ losses:.3f}, sd {losses.std():.3f}")
print(f"‖∇Φ‖² {gradient @ gradient:.4f}, variance of PGE {variance:.1f}")

# %% [markdown]
# **Sampled.** 200,000 draws must show the same: a mean that is the gradient, each entry with an
# error of about 4.9 / √200,000 = 0.011, and a total variance of 189. (In training each draw would
# be a forward pass of a sub-network; the table makes them free.)

# %%
rng = np.random.default_rng(0)
drawn = (rng.random((200_000, 8)) < s) @ (1 << np.arange(8))  # number of the mask
estimates = losses[drawn, None] * score[drawn]
print("mean    ", estimates.mean(axis=0).round(3))
print("gradient", gradient.round(3))
print(f"largest error {np.abs(estimates.mean(axis=0) - gradient).max():.3f}")
print(f"total variance {estimates.var(axis=0).sum():.0f}")

# %% [markdown]
# **Why a large L hurts.** Add a constant b to the loss. Which mask is better doesn't change, nor
# does the gradient, since E b ∇ ln p = b · 0. But the variance becomes E (L + b)²
# ‖∇ ln p‖² - ‖∇Φ‖², a parabola in b: 32 (E L + b)² + 32 Var L - ‖∇Φ‖². Its bottom is at b = -E L =
# -2.41; what's left there is 32 · 0.1067 - 0.258 = 3.16. The other 185.9 of 189.0, 98%, pay for the
# level alone.

# %%
levels = np.linspace(-5, 1, 61)
curve = np.array([p @ ((losses + b) ** 2 * square) for b in levels]) - gradient @ gradient
lowest = p @ ((losses - p @ losses) ** 2 * square) - gradient @ gradient
print(f"variance at b = 0: {variance:.1f}; at b = -E L: {lowest:.2f}; {lowest / variance:.1%}")
fig, ax = plt.subplots()
ax.plot(levels, curve, label="32 E (L + b)² - ‖∇Φ‖²")
dots = levels[5::10]
sampled = [((losses[drawn] + b)[:, None] * score[drawn]).var(axis=0).sum() for b in dots]
ax.plot(dots, sampled, "o", color="C1", label="200,000 draws")
for x, y, name in ((0, variance, "PGE as it is: 189"), (-2.41, lowest, "b = -E L: 3.2")):
    ax.annotate(name, (x, y), (x - 1.2, y + 80), arrowprops={"arrowstyle": "->"})
ax.set(xlabel="constant b added to the loss, nats", ylabel="total variance, nats²")
ax.set_title("The gradient is the same for every b, the variance is not")
_ = ax.legend(loc="upper center")

# %% [markdown]
# **How many samples?** The mean of N draws has the variance 189.0 / N. Its error is as large as the
# gradient when 189.0 / N = ‖∇Φ‖²: N = 189.0 / 0.2584 = 731.5. Up to there one averages noise: from
# one draw the direction is a coin toss (mean cosine with ∇Φ about 0), from 732 the cosine is near
# 1/√(1 + 1) = 0.71. With the constant at its best, N = 3.156 / 0.2584 = 12.2.

# %%
print(f"N = {variance / (gradient @ gradient):.1f}, best b: {lowest / (gradient @ gradient):.1f}")
for n in (1, 12, 732):
    i = rng.integers(256, size=(300, n))  # 300 times n masks
    for name, level in (("PGE", 0.0), ("best b", p @ losses)):
        mean = ((losses[i] - level)[..., None] * score[i]).mean(axis=1)
        cosine = mean @ gradient / np.linalg.norm(mean, axis=1) / np.linalg.norm(gradient)
        print(f"{n:4} draws, {name:6}: mean cosine {cosine.mean():5.2f}")

# %% [markdown]
# Training doesn't wait for 732 draws: update (3), s ← s - η L(m) ∇ ln p, lets its steps do the
# averaging, with a small η. The paper found that this "does not work in practice"; on planted
# structure (lesson 16; README) we found 0.56 of keep_prob on the good channels for `pge`, 0.72 for
# `vr-pge`, 0.48 for a coin (sd .07, .04, .11 over three seeds: `pge` may be no better than a coin).
#
# A constant baseline would need E L, which moves with every step and every mini-batch. Lesson 11
# takes a second mask's loss. And s has its own share: ‖∇ ln p‖² is on average Σ 1 / (s (1 - s)), 4
# per channel at s = 1/2, but 101 at s = 0.01. That share is Hᵅ's, lesson 12.

# %%
print("E (∇ ln p)² at s = 0.5, 0.1, 0.01:", [round(1 / (a * (1 - a)), 1) for a in (0.5, 0.1, 0.01)])
moments = sparse.estimator_moments("pge", losses, s, 0.0)  # α = 0, lesson 12
assert np.allclose(moments.mean, gradient)
assert abs(moments.total_variance - variance) < 1e-9
shifted = sparse.estimator_moments("pge-moving-average", losses, s, 0.0, baseline=p @ losses)
assert abs(shifted.total_variance - lowest) < 1e-9
assert np.allclose(sparse.score_function(masks[drawn], s), score[drawn])
assert np.allclose(sparse.pge(losses[drawn], masks[drawn], s), estimates)
print("score, estimates, mean and both variances equal the package's")

# %% [markdown]
# **Exercise 1.** At an uneven s, ‖∇ ln p‖² differs between masks, and the best constant to subtract
# isn't E L. Write `f(losses, square, p)` that returns it. **Exercise 2.** Write `f(variance,
# gradient, error)`: how many draws until the root mean square error is `error` times ‖gradient‖?


# %%
def check_baseline(answer):
    """answer(losses, square, p): the constant whose subtraction leaves the least variance."""
    uneven = np.array([0.5, 0.3, 0.5, 0.6, 0.8, 0.4, 0.7, 0.2])
    p, square = (
        sparse.mask_probabilities(uneven),
        (sparse.score_function(masks, uneven) ** 2).sum(1),
    )
    got, want = answer(losses, square, p), p @ (square * losses) / (p @ square)
    if np.isclose(got, p @ losses):
        return "wrong: E L; masks with a large score count more, set the slope by the constant to 0"
    if np.isclose(got, p @ (square * losses)):
        return "wrong: these weights sum to E ‖∇ ln p‖², divide by it"
    return (
        f"right: {want:.3f}, E L is {p @ losses:.3f}" if np.isclose(got, want) else f"wrong: {got}"
    )


def check_draws(answer):
    """answer(variance, gradient, error): number of draws."""
    got, want = answer(200.0, np.array([0.3, 0.4]), 0.1), 200.0 / 0.25 / 0.01
    if np.isclose(got, want / 10):
        return "wrong: the error falls with √N, so a tenth of it takes a hundred times the draws"
    if np.isclose(got, 200.0 / 0.5 / 0.01):
        return "wrong: a variance compares with ‖∇Φ‖², not with ‖∇Φ‖"
    return "right: 80,000" if np.isclose(got, want) else f"wrong: {got:g} instead of {want:g}"

# %% [markdown]
# # 09 · The score-function gradient, by enumeration
#
# **You will see** that the gradient of the expected loss with respect to keep_prob is an average of
# losses, each times a number that only the mask decides: no backward pass has a part in it.
#
# **You need** lesson 05 (masks). Lesson 08 told why the chain rule won't do.
#
# **In the paper** Sec. 4.1, the objective E L(w, m) and the distribution of the masks [eq2]; Sec.
# 4.2.2, ∇ ln p(m|s) = (m - s) / (s (1 - s)) [score] and ∇Φ(s) = E L(m) ∇ ln p(m|s) [pge].
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
# **The eight-channel network** of lesson 05, this time with 60 steps of dense training behind it,
# so that its channels are good for something. In this and the next lessons its weights are held
# fixed and only masks vary. 8 bits make 2⁸ = 256 masks, few enough to compute the loss of each:
# `losses[i]`, on 64 images, is that of the mask with the binary digits of i, channel 0 lowest.

# %%
network = models.build("vgg-tiny", in_channels=1, width=0.1).astype(np.float64)
optimizer = optim.SGD(network, lr=0.1, momentum=0.9)
for step in range(60):
    rows = np.random.default_rng(step).choice(len(images), 64, replace=False)
    optimizer.zero_grad()
    loss = F.cross_entropy(network(images[rows], training=True), labels[rows])
    loss.backward()
    optimizer.step()
mask_loss = MaskLoss(network, Batch(0, images[:64], labels[:64]), np.full(8, 0.5))
losses = sparse.loss_table(mask_loss, 8)
print(f"L(all) {losses[255]:.3f}, L(none) {losses[0]:.3f}, mean of 256 {losses.mean():.3f}")
print("masks with an empty group:", mask_loss.repaired)

# %% [markdown]
# Guessing costs ln 10 = 2.30 nats. All channels together do better, 1.57. "None" can't mean none: a
# convolution without filters passes nothing on, so in an empty group one channel is kept, and that
# happens in 256 · (1 - 3/4 · 7/8 · 7/8) = 109 masks. That's fine: below, L may be any function of
# m. The mean, 2.41, is worse than guessing: these weights have never met a mask.
#
# **The distribution.** Channel c is there with probability s_c, its keep_prob, whatever the others
# do: p(m|s) = Π_c s_c^m_c (1 - s_c)^(1 - m_c). The objective is the mean over masks, Φ(s) = E L(m)
# = Σ_m p(m|s) L(m), a sum of 256 terms; at s = 1/2 it's their plain mean.

# %%
masks = np.array([[i >> c & 1 for c in range(8)] for i in range(256)])
s = np.array([0.5, 0.3, 0.5, 0.6, 0.8, 0.4, 0.7, 0.2])


def probability(s):
    return np.where(masks == 1, s, 1 - s).prod(axis=1)


def phi(s):
    return probability(s) @ losses


print(f"sum of p {probability(s).sum():.3f}, expected channels {s.sum():.1f} of 8")
print(f"Φ(1/2) {phi(np.full(8, 0.5)):.3f}, Φ(s) {phi(s):.3f}")

# %% [markdown]
# **∇Φ, first way: finite differences.** A mask is 0 or 1 and has no derivative, but Φ is a smooth
# function of s. Better than smooth: each s_c enters each product once, so along one s_c Φ is a
# straight line. A central difference of a line is exact whatever the step, so steps of 0.1 and of
# 0.001 must agree to rounding.

# %%
unit = np.eye(8)
coarse = np.array([(phi(s + 0.1 * e) - phi(s - 0.1 * e)) / 0.2 for e in unit])
fine = np.array([(phi(s + 1e-3 * e) - phi(s - 1e-3 * e)) / 2e-3 for e in unit])
print("∇Φ:", coarse.round(3))
print("steps 0.1 and 0.001 agree to 1e-10:", np.abs(coarse - fine).max() < 1e-10)

# %% [markdown]
# **Second way: differentiate the sum.** L(m) doesn't depend on s, only p does: ∇Φ = Σ_m L(m)
# ∇p(m|s). In the product p, the factor of channel c is s_c (its derivative is 1) or 1 - s_c (it's
# -1); the other seven factors stay. As Σ_m p = 1 for every s, Σ_m ∇p must vanish.

# %%
factor = np.where(masks == 1, s, 1 - s)
gradient_p = probability(s)[:, None] / factor * np.where(masks == 1, 1, -1)  # (256, 8)
second = losses @ gradient_p
print("second way agrees to 1e-10:", np.abs(second - coarse).max() < 1e-10)
print("Σ ∇p is 0 to 1e-12:", np.abs(gradient_p.sum(axis=0)).max() < 1e-12)

# %% [markdown]
# **Third way: an average.** 256 terms fit in a table, 2^5504 masks of a VGG-19 don't; an average
# could be sampled. The trick is ∇p = p ∇ ln p: then ∇Φ = E L(m) ∇ ln p(m|s). The *score* ∇ ln p has
# one entry per channel, 1 / s_c where m_c = 1 and -1 / (1 - s_c) where it is 0;
# (m - s) / (s (1 - s)) says both at once. For s_7 = 0.2 that makes 5 and -1.25: mean
# .2 · 5 - .8 · 1.25 = 0, mean square 1 / (s (1 - s)) = 6.25.

# %%
score = (masks - s) / (s * (1 - s))  # (256, 8)
p = probability(s)
third = p @ (losses[:, None] * score)
print("values of channel 7:", np.unique(score[:, 7].round(4)))
print("third way agrees to 1e-10:", np.abs(third - coarse).max() < 1e-10)
print("E score is 0 to 1e-12:", np.abs(p @ score).max() < 1e-12)
print(f"E score² of channel 7: {p @ score[:, 7] ** 2:.2f}")

# %% [markdown]
# **What it means.** Sort the average by m_c: s_c · (1 / s_c) · E[L | m_c = 1] from the one half and
# -E[L | m_c = 0] from the other, so ∂Φ/∂s_c = E[L | m_c = 1] - E[L | m_c = 0]: the mean loss with
# the channel less the mean loss without it. For channel 7, 2.251 - 2.710 = -0.459: it helps, and
# its s should grow. Channel 6 has +0.451: among random companions it does harm.

# %%
kept, left_out = masks[:, 7] == 1, masks[:, 7] == 0
means = [np.average(losses[half], weights=p[half]) for half in (kept, left_out)]
print(f"{means[0]:.3f} - {means[1]:.3f} = {means[0] - means[1]:.3f}; ∂Φ/∂s_7 = {third[7]:.3f}")
fig, ax = plt.subplots()
bins = np.linspace(1.5, 3.4, 39)
for half, name, hatch in ((kept, "m₇ = 1", ""), (left_out, "m₇ = 0", "//")):
    ax.hist(losses[half], bins, weights=p[half] / p[half].sum(), alpha=0.6, label=name, hatch=hatch)
for mean, style, color in zip(means, ("-", "--"), ("C0", "C3"), strict=True):
    ax.axvline(mean, color=color, linestyle=style, label=f"mean {mean:.2f}")
ax.set(xlabel="loss L(m), nats", ylabel="probability given m₇")
ax.set_title("The derivative by s₇ is the distance between two mean losses")
_ = ax.legend()

# %% [markdown]
# Of the network only the 256 numbers L(m) were used, no activation and no derivative: each is one
# forward pass of a small, cut network. Lesson 08's chain-rule methods need a backward pass through
# all channels for the same purpose. The price of sampling this average is the next lesson's
# subject. The package has all four pieces.

# %%
assert np.allclose(sparse.mask_probabilities(s), p, rtol=0, atol=1e-15)
assert abs(sparse.expected_loss(losses, s) - phi(s)) < 1e-12
assert np.allclose(sparse.score_function(masks, s), score, rtol=1e-12)
gradient = sparse.expected_loss_gradient(losses, s)
for way in (coarse, second, third):
    assert np.allclose(way, gradient, rtol=0, atol=1e-10)
print("p(m|s), Φ, the score and ∇Φ equal the package's, ∇Φ in all three ways to 1e-10")

# %% [markdown]
# **Exercise 1.** Write `f(losses, masks, p, c)` that returns ∂Φ/∂s_c as a difference of two mean
# losses. **Exercise 2.** Let s = 1 / (1 + exp(-θ)), as many methods do. Write `f(mask, s)` that
# returns the score with respect to θ. (ds/dθ = s (1 - s).)


# %%
def check_difference(answer):
    """answer(losses, masks, p, c): mean loss with channel c less mean loss without it."""
    want, got = third[7], answer(losses, masks, p, 7)
    if np.isclose(got, -want):
        return "wrong: the sign; a channel that helps lowers the loss, its derivative is negative"
    on = masks[:, 7] == 1
    if np.isclose(got, p[on] @ losses[on] - p[~on] @ losses[~on]):
        return (
            "wrong: these are parts of Φ; divide each by its probability, P(m_c = 1) or P(m_c = 0)"
        )
    if np.isclose(got, losses[on].mean() - losses[~on].mean()):
        return "wrong: plain means are right at s = 1/2 only; the other channels' s weigh the masks"
    return "right: -0.459" if np.isclose(got, want) else f"wrong: {got:.3f} instead of {want:.3f}"


def check_logit_score(answer):
    """answer(mask, s): the gradient of ln p by the logits."""
    mask, s = np.array([1, 0, 1]), np.array([0.1, 0.5, 0.8])
    got = np.asarray(answer(mask, s))
    if np.allclose(got, (mask - s) / (s * (1 - s))):
        return "wrong: that's the score by s; the chain rule has a factor ds/dθ"
    if np.allclose(got, (mask - s) / (s * (1 - s)) ** 2):
        return "wrong: you divided by ds/dθ; ∂/∂θ = ds/dθ ∂/∂s multiplies"
    return "right: m - s, nothing to blow up" if np.allclose(got, mask - s) else f"wrong: {got}"

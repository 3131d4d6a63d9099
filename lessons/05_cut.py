# %% [markdown]
# # 05 · Masks, cut and paste
#
# **You will see** that a network cut physically small computes what the dense network times 0 and 1
# computes: same loss, same gradients, and exactly nothing at the channels that are absent.
#
# **You need** lessons 03 (convolution) and 04 (batch norm).
#
# **In the paper** Sec. 4.1, x_out,c = x_in ∗ (F_c m_c) [eq2]; Sec. 4.2.1, the gradient of a pruned
# filter is zero [sec421-w] and no error passes a pruned channel [sec421-x]; Remark 1 [remark1].
#
# **Takes** 1 second on 2 cores.

# %%
import numpy as np

import minicst.functional as F
from minicst import data, models, optim, sparse

digits = data.load_dataset("digits")
x = ((digits.train_images / digits.max_value - digits.mean) / digits.std)[:64]
labels = digits.train_labels[:64]
network = models.build("vgg-tiny", in_channels=1, width=0.1).astype(np.float64)
print(network)

# %% [markdown]
# This is the network that most lessons share: three convolutions with 2, 3 and 3 filters, each with
# batch norm and ReLU (together a *unit*), and a linear classifier. Its 2 + 3 + 3 = 8 filters are
# *maskable*: mask bit m_c says whether filter c is there. Filters with one stretch of bits are a
# *group*, here those of one convolution. One flat vector m holds all 8 bits, counted from 0, group
# by group, in the order in which data meets them. Three zeros below switch off one filter of each
# convolution, so 5 channels stay live. (The network is float64, so that equalities show to 1e-12;
# training is in float32.)

# %%
mask = np.array([1, 0, 1, 0, 1, 1, 1, 0], bool)
for group, place in network.groups.items():
    print(group, mask[place].astype(int))
print("live:", mask.sum(), "of", network.n_maskable)

# %% [markdown]
# **Masked: the definition.** Run the dense network, and multiply what each unit puts out, after
# batch norm, by its bits. Lesson 04 told why after: behind the filters alone, batch norm would turn
# the zeros into β. `sparse.masked` does that. All of the work is still done: a product with a
# column of zeros takes as long as any other.

# %%
dense = sparse.masked(network, mask)
loss_masked = F.cross_entropy(dense(x, training=True, track=False), labels)
loss_masked.backward()
conv2 = network.nodes["conv2"].transform.weight
print("conv2.weight", conv2.shape, "(filters, kh, kw, channels in)")
for c in range(3):
    print(
        f"filter {c}: m = {int(mask[2 + c])}, largest |gradient| {np.abs(conv2.grad[c]).max():.4f}"
    )

# %% [markdown]
# Filter 1 of conv2 has m = 0, and its gradient is 0: not small, but exactly 0, as ∂ℓ/∂F_c =
# ∂ℓ/∂x_out,c · m_c x_in. The same zero stops the error on its way down: what arrives at the input
# of a pruned channel is ∂ℓ/∂x_out,c · m_c = 0. And along the input axis, weights that read the
# pruned channel 1 of conv1 see only zeros, so their gradients must vanish too.

# %%
print("gradient by input channel:", np.abs(conv2.grad).sum(axis=(0, 1, 2)).round(2))
live = np.ix_(mask[2:5], [0, 1, 2], [0, 1, 2], mask[0:2])
print("gradients in live entries:", np.count_nonzero(conv2.grad[live]), "of", conv2.grad[live].size)
print("elsewhere:", np.count_nonzero(conv2.grad) - np.count_nonzero(conv2.grad[live]))

# %% [markdown]
# **Cut: the speed.** If absent rows and columns only ever see zeros, leave them out. Cutting a
# convolution takes the live rows (its own bits) and the live columns (the bits of whom it reads):
# W[keep_out][:, :, :, keep_in]. With 2 of 3 filters and 1 of 2 inputs live, conv2 keeps
# 2·9·1 = 18 of its 3·9·2 = 54 weights: a third, ρ_out · ρ_in with ρ the *keep rate*, the share of
# filters that are live. If it is the same everywhere, that's Remark 1's "roughly" ρ².

# %%
keep_out, keep_in = np.flatnonzero(mask[2:5]), np.flatnonzero(mask[0:2])
by_hand = conv2.data[keep_out][:, :, :, keep_in]
sub = sparse.cut(network, mask)
small = sub.network.nodes["conv2"].transform.weight
print("full", conv2.shape, "-> cut", small.shape, f"= {small.size / conv2.size:.2f} of the weights")
print("same numbers as by hand:", np.array_equal(small.data, by_hand))

# %% [markdown]
# The cut network is an ordinary network: forward and backward are the code of lessons 01 to 04 on
# smaller arrays. Its loss is that of the masked one, to the rounding of sums taken in another order
# (about 1e-16), and its gradients are the live entries of the masked one's.

# %%
loss_cut = F.cross_entropy(sub(x, training=True, track=False), labels)
loss_cut.backward()
print(f"loss, masked {loss_masked.item():.3f}, cut {loss_cut.item():.3f}")
print("losses differ by less than 1e-12:", abs(loss_masked.item() - loss_cut.item()) < 1e-12)
print("gradients too:", np.abs(small.grad - conv2.grad[live]).max() < 1e-12)

# %% [markdown]
# **Paste** writes the updated live entries back: weights, γ and β, running statistics, and momentum
# (SGD steps along a decaying sum of gradients). All others stay as they are: what is absent is
# frozen, weight decay (a pull towards 0) passes it by, its momentum waits. The paper says that
# absent filters need no update, and nothing of momentum. With 18 of 54 weights live, a step of SGD
# on the cut network changes exactly 18 numbers of the full conv2.

# %%
optimizer = optim.SGD(network, lr=0.1, momentum=0.9, weight_decay=1e-4)
before = conv2.data.copy()
step = sparse.cut(network, mask, optimizer)
F.cross_entropy(step(x, training=True), labels).backward()
step.optimizer.step()
step.paste()
print("weights of conv2 that moved:", np.count_nonzero(conv2.data != before), "of", before.size)

# %% [markdown]
# Equality with the package is this lesson's subject itself, so the last check goes the whole way: a
# step of the masked network and one of the cut network, from the same start, leave the same weights
# everywhere.

# %%
twins = [models.build("vgg-tiny", in_channels=1, width=0.1).astype(np.float64) for _ in range(2)]
for twin, form in zip(twins, (sparse.masked, sparse.cut), strict=True):
    sub = form(twin, mask, optim.SGD(twin, lr=0.1, momentum=0.9, weight_decay=1e-4))
    F.cross_entropy(sub(x, training=True), labels).backward()
    sub.update()
    sub.paste()
for (name, a), (_, b) in zip(*(twin.named_parameters() for twin in twins), strict=True):
    assert np.allclose(a.data, b.data, rtol=0, atol=1e-12), name
print("masked and cut leave the same weights, to 1e-12")

# %% [markdown]
# **Exercise 1.** Write `f(keep_out, keep_in)` that returns how many weights of a 3×3 convolution
# are live. **Exercise 2.** A gradient step with a mask, then one with another: which entries may
# have moved after both? Write `f(out_a, in_a, out_b, in_b)`, boolean vectors, that returns a
# boolean (c_out, c_in).


# %%
def check_live_weights(answer):
    """answer(keep_out, keep_in): how many weights of a 3x3 convolution the cut one has."""
    got = answer(np.array([0, 2]), np.array([1, 3, 4, 7]))
    if got == 8:
        return "wrong: 2 filters by 4 channels is the number of kernels; each has 3·3 weights"
    return "right: 2·3·3·4 = 72" if got == 72 else f"wrong: {got}; count rows, then columns, then 9"


def check_moved(answer):
    """answer(out_a, in_a, out_b, in_b): entries that two steps may have moved."""
    a, b = np.array([1, 0, 1], bool), np.array([0, 1, 1], bool)
    got = np.asarray(answer(a, ~a, b, ~b))
    if np.array_equal(got, np.outer(a | b, ~a | ~b)):
        return "wrong: row 0 is live in step a only, column 0 in step b only; they never met"
    right = np.array_equal(got, np.outer(a, ~a) | np.outer(b, ~b))
    return (
        "right: a union of two blocks, no block itself"
        if right
        else "wrong: each step moves rows × columns"
    )

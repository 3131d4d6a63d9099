# %% [markdown]
# # 03 · Convolution is a matrix product
#
# **You will see** that convolution is a copy and a matrix product, that both of its gradients are
# products of the same size, and that leaving out a filter makes all three smaller.
#
# **You need** lesson 01 (the tape).
#
# **In the paper** the ∗ of Sec. 4.1, x_out,c = x_in ∗ F_c, and "a generalized fully connected
# layer" (Sec. 3).
#
# **Takes** 1 second on 2 cores.

# %% [markdown]
# Images here are *channels last*: x is (n, h, w, c). A filter W[o] reads a window of kh × kw pixels
# in all channels, and slides over the image with stride s, past p zeros on each side: out[i, y, z,
# o] = Σ x[i, y·s + a - p, z·s + b - p, c] · W[o, a, b, c], summed over a, b and c. **im2col**
# writes each window as a row; then out = cols Wᵀ, with W as a matrix of one filter a row. Along an
# axis there are ⌊(size + 2p - k) / s⌋ + 1 windows.

# %%
import numpy as np

import minicst.functional as F
from minicst import Tensor, data, get_backend


def im2col(x, k, stride=1, padding=0):
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    oh, ow = ((size + 2 * padding - k) // stride + 1 for size in x.shape[1:3])
    cols = np.empty((len(x), oh, ow, k, k, x.shape[3]))
    for a, b in np.ndindex(k, k):
        cols[:, :, :, a, b] = padded[:, a : a + stride * oh : stride, b : b + stride * ow : stride]
    return cols.reshape(len(x) * oh * ow, -1)


# %% [markdown]
# 64 digits of 8×8, then the shape of the small network's second convolution: 2 channels in, 3
# filters of 3×3, p = 1. oh = 8 + 2 - 3 + 1 = 8, so there are 64·8·8 = 4096 windows of 3·3·2 = 18
# numbers, and a product of (4096, 18) with (18, 3). The definition, at one pixel, agrees.

# %%
digits, rng = data.load_dataset("digits"), np.random.default_rng(0)
x = digits.train_images[:64] / digits.max_value * rng.standard_normal(2)  # two channels
W = rng.standard_normal((3, 3, 3, 2))  # (c_out, kh, kw, c_in)
cols = im2col(x, 3, padding=1)
out = (cols @ W.reshape(3, 18).T).reshape(64, 8, 8, 3)
print("columns", cols.shape, "out", out.shape)
window, own = x[5, 2:5, 3:6], out[5, 3, 4]  # around pixel (3, 4) of image 5
print("same as the sum over its window:", np.allclose(own, [np.sum(window * f) for f in W]))

# %% [markdown]
# **The gradients** are those of a matrix product (lesson 01): with g = ∂ℓ/∂out as a (4096, 3)
# matrix, ∂ℓ/∂W = gᵀ cols and ∂ℓ/∂cols = g W. What is left is the way back from cols to x. A pixel
# lies in up to 9 windows, so its gradient is the sum of up to 9 entries of ∂ℓ/∂cols. **col2im**
# adds each row back where im2col took it.


# %%
def col2im(cols, shape, k, stride=1, padding=0):
    n, h, w, c = shape
    oh, ow = ((size + 2 * padding - k) // stride + 1 for size in (h, w))
    cols = cols.reshape(n, oh, ow, k, k, c)
    padded = np.zeros((n, h + 2 * padding, w + 2 * padding, c))
    for a, b in np.ndindex(k, k):
        padded[:, a : a + stride * oh : stride, b : b + stride * ow : stride] += cols[:, :, :, a, b]
    return padded[:, padding : padding + h, padding : padding + w]


# %% [markdown]
# im2col is linear: a product with a matrix of zeros and ones, too large to write down. col2im is
# the *transpose* of that matrix, as backward needs it, and not its inverse. Two facts show it. For
# any x and c, ⟨im2col(x), c⟩ = ⟨x, col2im(c)⟩. And col2im(im2col(1)) counts the windows of each
# pixel: 4 in a corner, 6 at an edge, 9 inside; an inverse would give 1 everywhere.

# %%
c = rng.standard_normal(cols.shape)
left, right = np.sum(cols * c), np.sum(x * col2im(c, x.shape, 3, padding=1))
print(f"⟨im2col(x), c⟩ = {left:.4g}, ⟨x, col2im(c)⟩ = {right:.4g}")
ones = np.ones((1, 8, 8, 1))
count = col2im(im2col(ones, 3, padding=1), ones.shape, 3, padding=1)[0, :, :, 0]
print("windows of a pixel in the corner, at the edge, inside:", *count[[0, 0, 3], [0, 3, 3]])

# %% [markdown]
# **The flip.** At stride 1, pixel q of the input gets g[q + p - a] W[a], summed over a. That is a
# convolution too: of g, with the kernel turned by 180°, channels exchanged and padding k - 1 - p.
# minicst takes that way where it is faster: it gathers instead of adding 9 times.

# %%
g = rng.standard_normal(out.shape)
grad_W = (g.reshape(-1, 3).T @ cols).reshape(W.shape)
grad_x = col2im(g.reshape(-1, 3) @ W.reshape(3, 18), x.shape, 3, padding=1)
turned = W[:, ::-1, ::-1].transpose(3, 1, 2, 0)  # (c_in, kh, kw, c_out)
flipped = (im2col(g, 3, padding=3 - 1 - 1) @ turned.reshape(2, -1).T).reshape(x.shape)
print("gradient by col2im and by the flipped kernel agree:", np.allclose(grad_x, flipped))

# %% [markdown]
# **The cost.** All three products multiply the same three sizes: n·oh·ow · kh·kw·c_in · c_out
# multiply-adds (MACs), here 4096·18·3 = 221,184 each, zeros of the padding counted, as is usual.
# minicst's meter counts what is executed. Leave out one of 3 filters and, as the layer before lost
# a channel, one of 2 inputs: 4096·9·2 = 73,728 are left, ρ_out·ρ_in = 2/3 · 1/2 of each of the
# three. If both shares are ρ, that's the ρ² of the paper's Remark 1. Lesson 05 cuts like that.

# %%
meter = get_backend().meter
for name, n_in, n_out in (("full", 2, 3), ("cut", 1, 2)):
    meter.reset()
    tx = Tensor(x[..., :n_in], requires_grad=True)
    tW = Tensor(W[:n_out, ..., :n_in], requires_grad=True)
    F.conv2d(tx, tW, padding=1).backward(g[..., :n_out])
    for which in ("forward", "weight_gradient", "input_gradient"):
        print(f"{name:5}{which:16}{meter.total(which=which):8,} MACs")

# %% [markdown]
# **The memory.** Columns hold kh·kw = 9 times the input. In VGG-16's second layer (64 channels,
# 32×32, batch 256, 4 bytes a number) that's 604 MB of columns for 67 MB of input, written and read
# once. So minicst takes few images at a time, with about 1.5 MiB of columns (here one, with 2.25):
# a core's caches still hold most when the product reads them. The result is the same.

# %%
size = 256 * 32 * 32 * 64 * 4 / 1e6
print(f"VGG-16, second layer: input {size:.0f} MB, columns {9 * size:.0f} MB")
chunks = [im2col(x[i : i + 4], 3, padding=1) @ W.reshape(3, 18).T for i in range(0, 64, 4)]
print("4 images at a time, same result:", np.allclose(np.concatenate(chunks), out.reshape(-1, 3)))

# %% [markdown]
# Equality with the package: the columns and their transpose, also at stride 2, where windows start
# at every other pixel; the forward pass; both gradients.

# %%
for stride in (1, 2):
    a = im2col(x, 3, stride, padding=1)
    assert np.array_equal(a, F.im2col(x, 3, 3, stride, padding=1))
    assert np.allclose(col2im(a, x.shape, 3, stride, 1), F.col2im(a, x.shape, 3, 3, stride, 1))
tx, tW = Tensor(x, requires_grad=True), Tensor(W, requires_grad=True)
theirs = F.conv2d(tx, tW, padding=1)
theirs.backward(g)
for own, their in ((out, theirs.data), (grad_W, tW.grad), (grad_x, tx.grad)):
    assert np.allclose(own, their, rtol=1e-10, atol=1e-10)
print("im2col, col2im, forward and both gradients equal minicst's")

# %% [markdown]
# **Exercise 1.** Write `f(size, k, stride, padding)`, the number of windows along an axis.
# **Exercise 2.** Write `f(n, oh, ow, k, c_in, c_out)`, the MACs of a training step of one
# convolution in the middle of a network: forward and backward.


# %%
def check_windows(answer):
    """answer(size, k, stride, padding): the number of windows along an axis."""
    cases = {(8, 3, 1, 1): 8, (8, 3, 2, 1): 4, (9, 3, 2, 0): 4, (32, 5, 1, 0): 28}
    for case, count in cases.items():
        if (got := answer(*case)) != count:
            if got == count - 1:
                return f"wrong: {case} gives {got}; the window at the start counts too, so + 1"
            return f"wrong: {case} gives {got}, not {count}; a window must fit in as a whole"
    return "right: ⌊(size + 2·padding - k) / stride⌋ + 1"


def check_macs(answer):
    """answer(n, oh, ow, k, c_in, c_out): MACs of forward and backward."""
    once, got = 2 * 8 * 8 * 3 * 3 * 4 * 5, answer(2, 8, 8, 3, 4, 5)
    if got in (once, 2 * once):
        return f"wrong: {got // once} of the three products: forward and two gradients"
    right = got == 3 * once
    return (
        "right: three equal products" if right else "wrong: a product is n·oh·ow · k·k·c_in · c_out"
    )

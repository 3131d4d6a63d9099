# %% [markdown]
# # 06 · Residual adds: tied groups and unions
#
# **You will see** that a channel of a residual stream is there as long as any of its writers is:
# independent masks leave the stream nearly dense, one mask for all writers shrinks it to ρ.
#
# **You need** lesson 05 (masks, cut and paste).
#
# **In the paper** not said: how masks meet at an add is a choice that minicst had to make. It rests
# on Sec. 4.2.1, nothing passes a pruned channel [sec421-x], and Remark 1 [remark1].
#
# **Takes** 3 seconds on 2 cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minicst.functional as F
from minicst import data, models, sparse

plt.style.use("minicst.style")
digits = data.load_dataset("digits")
x = ((digits.train_images / digits.max_value - digits.mean) / digits.std)[:64]
labels = digits.train_labels[:64]
options = {"name": "resnet20", "in_channels": 1, "width": 0.5}
network = models.build(**options, residual="independent").astype(np.float64)
for name in list(network.nodes)[:4]:
    print(name, "<-", *network.inputs[name], "| group", network.nodes[name].group)

# %% [markdown]
# ResNet-20: a first convolution, the *stem*, then three *stages* of three blocks. A block adds what
# two convolutions compute, the *branch*, to what came in, the *stream*. A channel of the sum is
# absent only if it is in every input, so live where **any** writer is: the union. Stage 1 has w = 4
# writers, stem and blocks; if each has a channel with chance ρ, the live share is 1 - (1-ρ)ʷ:
# for ρ = ½, writer by writer, ½, ¾, ⅞, 15⁄16. Stage 2 starts with two, branch and shortcut.

# %%
rng = np.random.default_rng(0)
stream = [name for name in network.nodes if name == "stem" or name.endswith(".add")]
lives = [sparse.propagate(network, m) for m in rng.random((300, network.n_maskable)) < 0.5]
counted = [np.mean([live[name].mean() for live in lives]) for name in stream]
predicted = [1 - 0.5**w for w in (1, 2, 3, 4, 2, 3, 4, 2, 3, 4)]
for name, p, c in zip(stream[:5], predicted, counted, strict=False):
    print(f"{name:17} predicted {p:.3f}, counted {c:.2f}")
assert np.allclose(predicted, counted, atol=0.03)

# %% [markdown]
# Which channels are live follows from mask and wiring alone, by two walks. Forward, "does anything
# arrive?": a filter is live if its bit is 1 and anything comes in; an add takes the union; pooling
# passes on. Backward, "does anything read it?": a unit reads all of its input if any of its filters
# is live. This is `sparse.propagate`; by hand, on masks so sparse that layers are empty:


# %%
def live_by_hand(network, mask):
    live = {"input": np.ones(network.in_channels, bool)}
    for name, reads in network.inputs.items():
        live[name] = np.any([live[read] for read in reads], axis=0)  # the union
        if network.nodes[name].kind == "unit":
            own = network.own(name, mask)  # None: the classifier has no mask
            live[name] = live[name].any() & (np.ones(10, bool) if own is None else own)
    needed = {name: np.zeros(channels.size, bool) for name, channels in live.items()}
    needed[network.output][:] = True
    for name, reads in reversed(network.inputs.items()):
        live[name] &= needed[name]
        for read in reads:
            needed[read] |= live[name].any() if network.nodes[name].kind == "unit" else live[name]
    return live


# %%
for rate in (0.03, 0.1, 0.5):
    for mask in rng.random((20, network.n_maskable)) < rate:
        by_hand, package = live_by_hand(network, mask), sparse.propagate(network, mask)
        assert all(np.array_equal(by_hand[name], package[name]) for name in package)
print("60 masks: by hand and package agree at every node")

# %% [markdown]
# **What passes.** A pruned filter and an absent channel are two things now. Below, every block has
# channel 0 of stage 1 pruned, only the stem writes it. Block 1's filter gets no gradient, as in
# lesson 05, but the channel's error goes on along the stream, to the stem's filter.

# %%
mask = np.ones(network.n_maskable, bool)
mask[[network.groups[f"stage1.block{block}.conv2"].start for block in (1, 2, 3)]] = False
F.cross_entropy(sparse.masked(network, mask)(x, training=True, track=False), labels).backward()
for name in ("stage1.block1.conv2", "stem"):
    gradient = network.nodes[name].transform.weight.grad[0]
    print(f"{name}, filter 0: {np.count_nonzero(gradient)} of {gradient.size} gradients aren't 0")

# %% [markdown]
# **Tied.** Let all writers of a stage's stream share one mask. Then their union is that mask, ρ of
# the channels, however many write, and every convolution inside shrinks on both sides: ρ². With
# independent masks one that reads a late stream loses filters, but next to no inputs: 15⁄16 · ρ. So
# at ρ = ½ a tied network should cost a little over ¼ of the multiply-adds (images and classes have
# no mask), an independent one nearer to a third. The price: 224 bits, not 392.

# %%
tied = models.build(**options, residual="tied").astype(np.float64)
for net in (tied, network):
    ones = np.ones(net.n_maskable)
    half, dense = (sparse.expected_macs(net, (8, 8, 1), r * ones) for r in (0.5, 1))
    print(f"{net.n_maskable} bits, {half / dense:.3f} of the dense MACs")

# %% [markdown]
# The same in a picture: independent writers refill the stream, block by block. After the nine
# blocks of ResNet-56's first stage 1 - ½¹⁰ = 99.9 % of it are live where half of the filters are.

# %%
lives = [sparse.propagate(tied, rng.random(tied.n_maskable) < 0.5) for _ in range(100)]
even = [100 * np.mean([live[name].mean() for live in lives]) for name in stream]
fig, ax = plt.subplots()
ax.plot(100 * np.array(counted), "o-", label="independent masks, counted")
ax.plot(100 * np.array(predicted), "x", color="black", markersize=10, label="1 - (1 - ρ)ʷ")
ax.plot(even, "s--", label="tied masks, counted")
ax.set(ylim=(0, 100), xlabel="add of stage · block, behind the stem", ylabel="live channels, %")
ax.set_title("Keep rate ½: tied masks keep half of the stream, independent ones fill it up")
ax.set_xticks(range(10), ["stem", *[name[5:-4].replace(".block", "·") for name in stream[1:]]])
_ = ax.legend(loc="lower right")

# %% [markdown]
# **Empty.** What if a mask leaves a layer nothing? A chain would be dead. A branch may be empty:
# without conv1 it adds nothing, and the cut network lacks it. A stream may not: `sparse.repair`
# keeps the channel of stem or shortcut with the largest keep_prob (chance of a 1), and counts it.
# First, block 1's conv1 is empty (0 repaired), then stem and stage 1 (1: channel 2 of the stem).

# %%
keep_prob = np.where(np.arange(network.n_maskable) == 2, 0.6, 0.5)
for prefixes in (("stage1.block1.conv1",), ("stem", "stage1")):
    mask = np.ones(network.n_maskable, bool)
    for group, place in network.groups.items():
        mask[place] &= not group.startswith(prefixes)
    used, repaired = sparse.repair(network, mask, keep_prob)
    left = list(sparse.cut(network, used).network.nodes)
    print(f"repaired {repaired} {np.flatnonzero(used & ~mask)}; cut:", *left[:3], "...")

# %% [markdown]
# Cut equals masked here too, for both kinds of masks and both shortcuts into a new stage: B is a
# 1×1 convolution, a writer with its own filters; A takes every second pixel and pads with zero
# channels. In a cut network each input of an add is placed at its channels of the union, then
# summed.

# %%
for residual in ("tied", "independent"):
    for shortcut in "AB":
        net = models.build(**options, residual=residual, shortcut=shortcut).astype(np.float64)
        for rate in (0.2, 0.5, 0.8):
            drawn = rng.random(net.n_maskable) < rate
            mask = sparse.repair(net, drawn, np.full(net.n_maskable, rate))[0]
            forms = [form(net, mask) for form in (sparse.masked, sparse.cut)]
            a, b = (F.cross_entropy(form(x, training=True, track=False), labels) for form in forms)
            assert abs(a.item() - b.item()) < 1e-12
        print(f"{residual}, shortcut {shortcut}: {net.n_maskable} bits, cut equals masked to 1e-12")

# %% [markdown]
# **Exercise 1.** `f(rho, w)`: the share of live channels of a stream with w independent writers.
# **Exercise 2.** `f(stem, conv1, conv2)`: the live channels of a block's sum, by three masks.


# %%
def check_union(answer):
    """answer(rho, w): share of channels that any of w independent writers has."""
    got = answer(0.3, 3)
    if np.isclose(got, 0.3**3):
        return "wrong: 0.027 is where all writers are live; one is enough"
    if np.isclose(got, 0.9):
        return "wrong: adding probabilities counts channels with two writers twice"
    return "right: 1 - 0.7³ = 0.657" if np.isclose(got, 0.657) else f"wrong: {got}; 1 - P(none)"


def check_stream(answer):
    """answer(stem, conv1, conv2): live channels of stem + conv2(conv1(stem))."""
    stem, conv2, on = np.array([1, 0, 0, 1], bool), np.array([0, 1, 0, 1], bool), np.array([True])
    full, empty = np.asarray(answer(stem, on, conv2)), np.asarray(answer(stem, ~on, conv2))
    if np.array_equal(full, stem & conv2):
        return "wrong: a channel needs one writer, not both: union, not intersection"
    if np.array_equal(full, stem | conv2) and np.array_equal(empty, full):
        return "wrong: with conv1 empty nothing comes into conv2, so its filters write nothing"
    right = np.array_equal(full, stem | conv2) and np.array_equal(empty, stem)
    return "right: the union, if the branch is fed" if right else f"wrong: {full}, {empty}"

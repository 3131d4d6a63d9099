# %% [markdown]
# # 18 · Time: where the seconds go
#
# **You will see** that a step has three parts, products that fall as ρ², copies that fall as ρ and
# overheads that don't, and that these three numbers reproduce our measured times within 5 %.
#
# **You need** lessons 03 (im2col) and 07 (counting).
#
# **In the paper** App. C.2 and Table 5, measured time [time]; Remark 1 is about
# multiply-adds.
#
# **Takes** 8 seconds on 2 cores. Outputs that are times differ from machine to machine.

# %%
import timeit
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import nnls

import minicst.functional as F
from minicst import sparse
from minicst.backend import cpu_backend
from minicst.bench import BenchSettings, Roofline, run_bench, workloads
from minicst.bench.layers import layer_rows
from minicst.bench.paper import DENSE, ROWS

plt.style.use("minicst.style")

# %% [markdown]
# **The floor.** No program whose products run through BLAS is faster than its MACs over the peak
# rate of a large product. README's two cores reach 199 GMAC/s, and copy 29 GB/s. A dense step of
# VGG-19 on 128 images takes (3 · 398,136,320 - 1,769,472) · 128 = 152.7 GMAC (lesson 07), so 0.767
# s at least, 61 % of the measured 1.25 s.
#
# **Narrow is slow.** 199/29 = 6.9: what does fewer MACs for a byte that it moves waits for memory.
# A 3×3 convolution from c to c channels does 9c² MACs a pixel and moves 8c bytes: enough from c = 6
# on. But im2col writes and reads 9c numbers, 72c bytes more: then from c = 61 on (so minicst works
# in chunks, whose columns stay in the cache).

# %%
macs = (3 * 398_136_320 - 1_769_472) * 128
print(f"{macs / 1e9:.1f} GMAC: {macs / 199e9:.3f} s, {macs / 199e9 / 1.25:.0%} of 1.25 s")
print(f"6.9 MACs a byte: c = {6.9 * 8 / 9:.0f} without columns, {6.9 * 80 / 9:.0f} with them")

# %% [markdown]
# Sparse training makes layers narrow, so it walks down the curve below, measured here and now. At
# 16 channels copying windows into columns is over a third of a convolution's time, and the product
# alone reaches 60 % of the peak (README); batch norm and ReLU, which have no products, aren't on
# it.

# %% tags=["volatile"]
roof = Roofline(cpu_backend())
roof.measure(tries=4)
rng, widths, shares = np.random.default_rng(0), (4, 8, 16, 32, 64, 128, 256), []
for c in widths:
    x, weight = (rng.standard_normal((n, k, k, c), np.float32) for n, k in ((8, 16), (c, 3)))
    seconds = timeit.repeat(partial(F.conv2d, x, weight, padding=1), number=1, repeat=4)
    shares.append(100 * roof.floor(8 * 16 * 16 * 9 * c * c) / min(seconds))
fig, ax = plt.subplots()
ax.plot(widths, shares, "o-")
ax.set(xscale="log", ylim=(0, None), xlabel="channels in and out", ylabel="share of the peak, %")
ax.set_xticks(widths, widths)
ax.set_title("Narrow convolutions are far from the peak (3×3, 8 images of 16×16 pixels)")
print(f"{roof.gmacs:.0f} GMAC/s, copies {roof.copied:.0f} GB/s, {roof.backend.threads} threads")

# %% [markdown]
# **Parts of a step.** The backend's operations can be timed one by one. README has, for VGG-19 at
# 4.94 % of the MACs: convolutions 65 % of the step, batch norm 18 %, cut and paste 5 %, pooling 5
# %, Python and the rest 6 %. Below, Algorithm 1 on vgg-small at 25 % of the MACs; "rest" is Python,
# and NumPy between operations.

# %% tags=["volatile"]
settings = BenchSettings(networks=("vgg-small",), batch_size=32, shares=(25.0,))
entry = layer_rows(workloads(settings)[0], pairs=1, says=lambda line: None)[1]  # 0: dense
for name, seconds in list(entry["operations"].items())[:8]:
    print(f"{name:22} {100 * seconds / entry['seconds']:3.0f} %")

# %% [markdown]
# **A model with three numbers.** Let a dense step be products p, copies c and overheads o, p + c +
# o = 1. Algorithm 1 runs 4⁄3 of its passes, at r = ρ² of the MACs: t = 4⁄3 (p r + c √r) + o
# (Amdahl's law with a middle term). Fitted to README's "Speed" (two Xeon cores, batch 128), VGG-19
# is two thirds products, ResNet-20, of 16 to 64 channels, one sixth: its saving ends at 1/o, some
# 3.6x. The paper's minutes (Table 5, RTX 2080 Ti) fit with c = .58. The paper blames data loading
# and latency; the fit finds little that doesn't fall, o = .02.

# %%
measured = {  # percent of the MACs that ran, milliseconds of a step; dense first
    "VGG-19": ([100, 28.73, 19.37, 10.38, 5.04, 1.69], [1258, 653, 494, 320, 206, 125]),
    "ResNet-32 x2": ([100, 28.94, 19.40, 10.53, 5.32, 1.83], [1263, 805, 655, 477, 354, 250]),
    "ResNet-20": ([100, 28.62, 18.51, 10.50, 5.22, 1.98], [317, 248, 199, 172, 145, 126]),
    "VGG-19, paper's GPU": np.array([(p.macs, p.forward + p.backward) for p in (DENSE, *ROWS)]).T,
}
fitted = {}
for label, (percent, took) in measured.items():
    r, t = np.array(percent) / 100, np.array(took) / took[0]
    passes = np.where(r < 1, 4 / 3, 1)
    terms = np.stack([passes * r, passes * np.sqrt(r), r**0], axis=1)
    parts = nnls(terms / t[:, None], np.ones(6))[0]  # least squares of relative errors
    fitted[label] = parts / parts.sum()
    print(label, fitted[label].round(2), f"within {100 * max(abs(terms @ parts / t - 1)):.0f} %")

# %% [markdown]
# At 5 % of the MACs, formula and clock say 14.9x and 6.2x for VGG-19 (the paper: 15.3x and 4.5x),
# 14.4x and 2.2x for ResNet-20. Where a line meets 1x, Algorithm 1 is as slow as dense training: by
# MACs at ρ = .866 (lesson 07), by the model at .84 for VGG-19 and .79 for ResNet-20.

# %%
r = np.geomspace(0.01, 1, 50)
fig, ax = plt.subplots(figsize=(7.2, 4.6))
ax.plot([0.75, 75], [0.75, 75], ":", color="grey", label="MACs turned into time in full")
for (label, (percent, took)), mark in zip(measured.items(), "os^x", strict=True):
    p, c, o = fitted[label]
    (line,) = ax.plot(0.75 / r, 1 / (4 / 3 * (p * r + c * np.sqrt(r)) + o))
    saving = took[0] / np.array(took[1:])
    ax.plot(75 / np.array(percent[1:]), saving, mark, color=line.get_color(), label=label)
    print(f"{label}: 1x at keep rate {np.roots([4 / 3 * p, 4 / 3 * c, o - 1]).max():.2f}")
ax.set(xscale="log", yscale="log", ylim=(0.6, 25))
ax.set(xlabel="saving in MACs, 3/(4r)", ylabel="saving in time")
ax.set_xticks([1, 3, 10, 30], ["1x", "3x", "10x", "30x"])
ax.set_yticks([1, 2, 5, 10, 20], ["1x", "2x", "5x", "10x", "20x"])
ax.set_title("Time saved against MACs saved: measured (marks) and the model (lines)")
_ = ax.legend()

# %% [markdown]
# **When the method is slower than dense.** At high keep rates, then; on a small network at lower
# ones, too. A call takes the interpreter as long for 2 channels as for 1, and a second forward
# pass, sampling, cut and paste come on top. `minicst bench` on the eight-channel network (8 color
# images of 32×32): Algorithm 1 loses to dense at 80 % of the MACs, and at 50 %, where 3/(4r) is
# 1.5.

# %% tags=["volatile"]
choice = {"networks": ("vgg-tiny",), "width": 0.1, "batch_size": 8, "shares": (80.0, 50.0)}
results = run_bench(BenchSettings(**choice, only=("steps",), peers=()), says=lambda line: None)
steps = results["workloads"][0]["steps"]
print(f"dense {1e3 * steps['dense']['seconds']:.1f} ms, {steps['dense']['of_peak']:.1%} of peak")
for row in steps["rows"]:
    print(f"{row['share']:.0f} % of the MACs: {1e3 * row['seconds']:.1f} ms, {row['saving']:.2f}x")

# %% [markdown]
# Whatever the clock said: the floor is MACs over the peak, a share of the peak is a rate over it,
# and the formula's saving is that of the masks that ran.

# %%
assert roof.floor(macs) == macs / (roof.gmacs * 1e9)
for row in steps["rows"]:
    assert row["of_peak"] == row["gmacs"] / results["peak"]["gmacs"]
    assert row["saving_paper_formula"] == sparse.train_cost_saving(row["executed_share"])
print("floor, shares of the peak and the formula's savings are as the package defines them")

# %% [markdown]
# **Exercise 1.** `f(p, c, o, rho)`: the saving in time by the model. **Exercise 2.** `f(macs,
# n_bytes, gmacs, gb)`: the least seconds of a pass, if products and memory work at the same time
# (`gmacs`, `gb`: 10⁹ a second).


# %%
def check_saving(answer):
    """answer(p, c, o, rho): dense over Algorithm 1."""
    got = answer(0.6, 0.3, 0.1, 0.25)
    if np.isclose(got, 1 / (0.0375 + 0.075 + 0.1)):
        return "wrong: 4.7x is with one forward pass; Algorithm 1 runs two, 4/3 of the passes"
    if np.isclose(got, 1 / (4 / 3 * 0.9 / 16 + 0.1)):
        return "wrong: 5.7x is with copies that fall as ρ²; they fall as ρ"
    return "right: 1/(4/3 · 0.1125 + 0.1) = 4x" if np.isclose(got, 4) else f"wrong: {got}"


def check_floor(answer):
    """answer(macs, n_bytes, gmacs, gb): seconds of the roofline."""
    products, memory = answer(4e9, 1e9, 2, 1), answer(4e9, 3e9, 2, 1)
    if np.isclose(products, 3) and np.isclose(memory, 5):
        return "wrong: the sum is what they take one after the other"
    if np.isclose(memory, 2):
        return "wrong: 3 GB at 1 GB/s take 3 s, so memory is the limit there"
    right = np.isclose(products, 2) and np.isclose(memory, 3)
    return "right: whichever of the two takes longer" if right else f"wrong: {products}, {memory}"

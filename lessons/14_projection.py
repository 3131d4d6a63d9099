# %% [markdown]
# # 14 · The projection
#
# **You will see** that the allowed s nearest to a point z is z less *one* number v for all
# channels, clipped to [0, 1], and that this number is what makes channels compete.
#
# **You need** lesson 11 (VR-PGE), for what a step does to s.
#
# **In the paper** Sec. 4.2.2 and proj_S in line 6 of Algorithm 1, by Theorem 1 of its reference 50
# [projection].
#
# **Takes** 2 seconds on 2 cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

from minicst import sparse

plt.style.use("minicst.style")
z, K = np.array([1.50, 0.90, 0.60, 0.45, 0.10, -0.20]), 2.0
print("clip(z, 0, 1) =", np.clip(z, 0, 1), f"sum {np.clip(z, 0, 1).sum():.2f}, K = {K}")

# %% [markdown]
# A step takes s to some z, anywhere. Allowed are S = {s: 0 ≤ s_c ≤ 1, Σ s_c ≤ K}, and proj_S(z) is
# the point of S nearest to z: it minimizes ½ ‖s - z‖². Add a price v ≥ 0 for the budget, ½ ‖s - z‖²
# + v (Σ s - K), and each channel is alone: ½ (s_c - z_c)² + v s_c is smallest on [0, 1] at s_c =
# clip(z_c - v, 0, 1). If the sum at v = 0 is within K, v is 0. Else v is the root of g(v) = Σ
# clip(z - v, 0, 1) - K, which only falls. Halve an interval that holds it 50 times: v = .3167.

# %%
low, high = 0.0, z.max()
for _ in range(50):
    middle = (low + high) / 2
    low, high = (middle, high) if np.clip(z - middle, 0, 1).sum() > K else (low, middle)
bisected = low
print(f"v = {bisected:.4f}, s =", np.clip(z - bisected, 0, 1).round(4))

# %% [markdown]
# Draw g. It is straight between kinks, and has one wherever a channel arrives at 1 or at 0: at v =
# z_c - 1 and v = z_c. Its slope is minus the number of channels in between. At the root three are
# (1, 2, 3), channel 0 is still at 1, and 4 and 5 are at 0: 1 + .9 + .6 + .45 - 3 v = 2, so v =
# .95/3 = .3167.

# %%
kinks = np.unique(np.concatenate([z - 1, z]))
fig, ax = plt.subplots()
values = np.clip(z - kinks[:, None], 0, 1).sum(axis=1) - K
ax.plot(kinks, values, "-o", label="g, with its kinks z_c - 1 and z_c")
ax.axhline(0, color="black", linewidth=0.8)
ax.plot(bisected, 0, "D", color="C3", markersize=8, label=f"root v = {bisected:.4f}")
ax.axvspan(kinks[0], 0, color="0.9")
ax.text(-0.04, -1.6, "v < 0: not allowed", ha="right")
ax.set(xlabel="multiplier v", ylabel="g(v) = Σ clip(z - v, 0, 1) - K")
ax.set_title("The multiplier is the root of a falling, piecewise linear function")
legend = ax.legend()

# %% [markdown]
# **Exactly.** Sort the 12 kinks, find the two between which g changes sign, and take the straight
# line's root: no tolerance, where the released code bisects until Σs is within .001 of K.


# %%
def project(z, K):
    kinks = np.sort(np.concatenate([z - 1, z]))
    values = np.array([np.clip(z - v, 0, 1).sum() for v in kinks]) - K
    if np.clip(z, 0, 1).sum() <= K:
        return np.clip(z, 0, 1), 0.0
    i = np.count_nonzero(values > 0) - 1  # g(kink i) > 0 >= g(kink i + 1)
    share = values[i] / (values[i] - values[i + 1])
    v = kinks[i] + share * (kinks[i + 1] - kinks[i])
    return np.clip(z - v, 0, 1), v


s, v = project(z, K)
print(f"v = {v:.4f}, sum {s.sum():.3f}, equal to the bisection: {np.isclose(v, bisected)}")

# %% [markdown]
# **KKT.** The set is convex, so these conditions decide: v ≥ 0; v (K - Σs) = 0; and z_c - s_c = v
# inside, ≥ v at 1, ≤ v at 0. Read z_c - s_c as what a channel gave up: v where it could, more at 1
# (clipped too), less at 0 (it had no more).

# %%
for name, where in (("at 1", s == 1), ("inside", (s > 0) & (s < 1)), ("at 0", s == 0)):
    print(f"{name:6} channels", np.flatnonzero(where), " z - s =", (z - s)[where].round(4))
assert np.isclose(v * (K - s.sum()), 0)

# %% [markdown]
# **Nearest, by brute force.** With two channels and K = 1.2 the set is a square without a corner.
# On a grid of spacing .01 no allowed point may be nearer to z than the projection (asserted); the
# nearest one's distance is printed beside it. Where v = 0, clipping was enough.

# %%
fig, ax = plt.subplots(figsize=(5.6, 4.4))
ax.fill([0, 1, 1, 0.2, 0], [0, 0, 0.2, 1, 1], color="C5", alpha=0.35)
grid = np.stack(np.meshgrid(*[np.arange(101) / 100] * 2), axis=-1).reshape(-1, 2)
grid = grid[grid.sum(axis=1) < 1.2 + 1e-9]
for point in np.array([[1.5, 0.5], [0.87, 0.815], [-0.2, 1.4], [1.3, -0.2], [0.4, 0.5]]):
    near, price = project(point, 1.2)
    distance, on_grid = (np.linalg.norm(p - point, axis=-1).min() for p in (near, grid))
    assert distance - 1e-9 < on_grid < distance + 0.01
    print(point, "->", near.round(4), f"v {price:.3f}, distance {distance:.3f}, grid {on_grid:.3f}")
    ax.annotate("", near, point, arrowprops={"arrowstyle": "->", "color": "C3", "lw": 1.5})
    ax.plot(*point, "o", color="C0")
ax.text(0.5, 0.2, "allowed", ha="center")
ax.set(xlabel="s of channel 0", ylabel="s of channel 1", aspect="equal")
_ = ax.set_title("What is outside goes to the nearest allowed point (K = 1.2)")

# %% [markdown]
# **Competition.** Raise z_2 by .06. The price rises by .06/3 = .02, which all three inside pay:
# channel 2 gains .04, the two others lose .02. Channels at 0 or 1 notice nothing. So a channel that
# helps less than those inside do on average falls. With the exact gradient they come to rest where
# Hᵅ ∂Φ/∂s_c is the same for all; the optimum of (2) asks that of ∂Φ/∂s_c. So with α = 1/2 the
# descent ends 6% to 8% of the way short of it (README).

# %%
raised, price = project(z + np.array([0, 0, 0.06, 0, 0, 0]), K)
print(f"v {v:.4f} -> {price:.4f}, change of s:", (raised - s).round(4))

# %% [markdown]
# **Absorbed.** At s = 0 a channel is never drawn, m - s = 0, no estimate moves it: z = s = 0; as
# v ≥ 0 it stays, under SGD for good. (Adam's running mean of old gradients might lift it, but in
# both runs that lesson 16 shows 17 of 38 channels came to 0 and none left.) At s = 1 m - s = 0 too,
# but any v > 0 leads out. A floor (`lower`, with `upper` = 1 - lower) keeps both in play:
# `--keep-prob-floor`, which the paper doesn't have.

# %%
s, mask = np.array([1.0, 0.7, 0.3, 0.0]), np.array([1, 1, 1, 0])
moved = s - 0.5 * sparse.vr_pge(1.9, 2.0, mask, s, 0.5)  # m did better by .1
for lower in (0.0, 0.05):
    floored, price = sparse.project_capped_simplex(moved, 2.0, lower, 1 - lower)
    print(f"lower {lower}: z", moved.round(3), f"v {price:.3f} -> s", floored.round(3))

# %% [markdown]
# **Costs.** Where channel c costs w_c and Σ w_c s_c ≤ K, the same argument gives s_c = clip(z_c - v
# w_c, 0, 1): dear ones pay more (`--budget-in macs`). Now all of it against the package, on 1,000
# random points.

# %%
rng = np.random.default_rng(0)
for _ in range(1000):
    point, budget = rng.normal(0.5, 1.0, 8), rng.uniform(0.1, 8)
    mine, theirs = project(point, budget), sparse.project_capped_simplex(point, budget)
    assert np.allclose(mine[0], theirs[0], rtol=0, atol=1e-12)
    assert np.isclose(mine[1], theirs[1])
cost = np.array([1, 1, 4, 1, 1, 4])
priced, price = sparse.project_capped_simplex(z, 3.0, weights=cost)
assert np.allclose(priced, np.clip(z - price * cost, 0, 1))
print(f"equal to the package; with costs {cost}: v = {price:.3f}, s =", priced.round(3))

# %% [markdown]
# **Exercise 1.** All n channels are inside, Σs = K; a step raises one of them by x, and none is
# clipped. Write `f(n, x)`: the change of its s. **Exercise 2.** Write `f(z, w, K)`: the projection
# with costs w, by bisection.


# %%
def check_net_rise(answer):
    """answer(n, x): change of s of the channel whose z rose by x."""
    got = float(answer(5, 0.1))
    if np.isclose(got, 0.1):
        return "wrong: the budget was full; the price rises by x / n, for this channel too"
    if np.isclose(got, 0.075):
        return "wrong: the raised channel pays too, so n share the price, not n - 1"
    return "right: x - x / n" if np.isclose(got, 0.08) else f"wrong: {got:.3f}; v rises by .02"


def check_costs(answer):
    """answer(z, w, K): nearest s with sum w s <= K."""
    point, w = np.array([1.5, 0.9, 0.6, 0.3]), np.array([1.0, 2.0, 1.0, 0.5])
    got = np.asarray(answer(point, w, 2.0))
    if not np.allclose(answer(point, w, 9.0), np.clip(point, 0, 1), atol=1e-6):
        return "wrong: K = 9 is no constraint here, so v = 0 and s = clip(z)"
    if np.isclose(w @ got, 2.0) and np.allclose(got, project(point, got.sum())[0], atol=1e-6):
        return "wrong: within the budget, but not nearest; a channel pays v times its cost"
    right = np.allclose(got, sparse.project_capped_simplex(point, 2.0, weights=w)[0], atol=1e-6)
    return "right: clip(z - v w)" if right else f"wrong: {got.round(3)}, cost {w @ got:.3f} of 2"

# %% [markdown]
# # Solutions of lesson 14
#
# `minicst lesson 14 --answers lessons/solutions/14_projection.py` runs them behind the lesson.


# %%
def right_net_rise(n, x):
    return x - x / n


def wrong_net_rise(n, x):
    return x  # forgets the price


def wrong_net_rise_2(n, x):
    return x - x / (n - 1)  # only the others pay


print(check_net_rise(right_net_rise))


# %% [markdown]
# Σ w_c clip(z_c - v w_c, 0, 1) falls in v as g does, so the same halving finds its root. If clip(z)
# keeps the budget, low stays at 0.


# %%
def right_costs(z, w, K):
    low, high = 0.0, (np.abs(z) / w).max()
    for _ in range(60):
        v = (low + high) / 2
        low, high = (v, high) if w @ np.clip(z - v * w, 0, 1) > K else (low, v)
    return np.clip(z - low * w, 0, 1)


def wrong_costs(z, w, K):
    low, high = 0.0, z.max()
    for _ in range(60):
        v = (low + high) / 2
        low, high = (v, high) if w @ np.clip(z - v, 0, 1) > K else (low, v)
    return np.clip(z - low, 0, 1)  # the same price for cheap and dear


def wrong_costs_2(z, w, K):
    return np.clip(z, 0, 1) * K / (w @ np.clip(z, 0, 1))  # scaled, also where nothing is to do


print(check_costs(right_costs))

# %% [markdown]
# # Solutions of lesson 18
#
# `minicst lesson 18 --answers lessons/solutions/18_time.py` runs them behind the lesson.


# %%
def right_saving(p, c, o, rho):
    return 1 / (4 / 3 * (p * rho**2 + c * rho) + o)


def wrong_saving(p, c, o, rho):
    return 1 / (p * rho**2 + c * rho + o)  # without the second forward pass


def wrong_saving_2(p, c, o, rho):
    return 1 / (4 / 3 * (p + c) * rho**2 + o)  # as if copies shrank on both sides


print(check_saving(right_saving))


# %% [markdown]
# A roof with two slopes: below gmacs/gb multiply-adds a byte memory is the limit, above it
# arithmetic.


# %%
def right_floor(macs, n_bytes, gmacs, gb):
    return max(macs / gmacs, n_bytes / gb) / 1e9


def wrong_floor(macs, n_bytes, gmacs, gb):
    return (macs / gmacs + n_bytes / gb) / 1e9  # nothing at the same time


def wrong_floor_2(macs, n_bytes, gmacs, gb):
    return macs / gmacs / 1e9  # arithmetic alone


print(check_floor(right_floor))

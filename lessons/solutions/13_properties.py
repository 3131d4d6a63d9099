# %% [markdown]
# # Solutions of lesson 13
#
# `minicst lesson 13 --answers lessons/solutions/13_properties.py` runs them behind the lesson.


# %%
def right_largest_ratio(s):
    return (1 + 1 / np.minimum(s, 1 - s).min()) / 2


def wrong_largest_ratio(s):
    return (1 + 1 / s.min()) / 2  # forgets that 0 can be the rare bit


def wrong_largest_ratio_2(s):
    return 1 / np.minimum(s, 1 - s).min()  # from V alone: no loss comes this far


print(check_largest_ratio(right_largest_ratio))


# %% [markdown]
# The limit is reached where the loss varies only while the rare bit is there.
#
# V = 2 Var L, and an unbiased variance divides by N - 1. The mean over all N² pairs has N pairs of
# a mask with itself in it: it is (N - 1)/N of the right number.


# %%
def right_unbiased_v(losses):
    return 2 * losses.var(ddof=1)


def wrong_unbiased_v(losses):
    return ((losses[:, None] - losses) ** 2).mean()


def wrong_unbiased_v_2(losses):
    return losses.var(ddof=1)


print(check_unbiased_v(right_unbiased_v))

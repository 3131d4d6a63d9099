# %% [markdown]
# # Solutions of lesson 12
#
# `minicst lesson 12 --answers lessons/solutions/12_theorem1.py` runs them behind the lesson.


# %%
def right_bound(s, alpha, vmax):
    return ((s * (1 - s)) ** (2 * alpha - 1)).sum() * vmax


def wrong_bound(s, alpha, vmax):
    return ((s * (1 - s)) ** (alpha - 1)).sum() * vmax  # the factor of the step, not its square


def wrong_bound_2(s, alpha, vmax):
    return len(s) * vmax  # from alpha = 1/2 on


print(check_bound(right_bound))


# %% [markdown]
# The value that is drawn with probability s has a step² of (1 - s)², so in the second moment its
# weight is s (1 - s)² against s² (1 - s): the rare value decides. That's why Vmax, and not V,
# stands in the bound.


# %%
def right_second_moment(s, alpha, v0, v1):
    return (s * (1 - s)) ** (2 * alpha - 2) * (s * (1 - s) ** 2 * v1 + (1 - s) * s**2 * v0)


def wrong_second_moment(s, alpha, v0, v1):
    return (s * (1 - s)) ** (2 * alpha - 1) * (
        s * v1 + (1 - s) * v0
    )  # as if step and V were independent


print(check_second_moment(right_second_moment))

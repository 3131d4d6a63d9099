# %% [markdown]
# # Solutions of lesson 01
#
# `minicst lesson 1 --answers lessons/solutions/01_tape.py` runs them behind the lesson.


# %%
def right_divide(g, a, b):
    return g / b, (-g * a / b**2).sum(axis=0)


def wrong_divide(g, a, b):
    return g / b, -g * a / b**2  # b was broadcast: the gradient must be summed over rows


def wrong_divide_2(g, a, b):
    return g / b, (g * a / b**2).sum(axis=0)  # the sign


print(check_divide(right_divide))

# %% [markdown]
# Both inputs of a sum are the same y, so the gradient of y is g + g = 2g, and it is complete when
# the one function that reads y has run. Without the order, by recursion into each input, the way
# down would fork twenty times: over a million calls for the same 2²⁰.

# %%
right_runs = 20
wrong_runs = 2**20 - 1  # recursion without an order
wrong_runs_2 = 40  # two rules each, but one function

print(check_runs(right_runs))

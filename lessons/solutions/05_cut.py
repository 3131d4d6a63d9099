# %% [markdown]
# # Solutions of lesson 05
#
# `minicst lesson 5 --answers lessons/solutions/05_cut.py` runs them behind the lesson.


# %%
def right_live_weights(keep_out, keep_in):
    return len(keep_out) * 3 * 3 * len(keep_in)


def wrong_live_weights(keep_out, keep_in):
    return len(keep_out) * len(keep_in)  # kernels, not weights


print(check_live_weights(right_live_weights))


# %% [markdown]
# Each step moves the block of its live rows and live columns; two blocks needn't make a block. This
# is why a paste can't write whole rows.


# %%
def right_moved(out_a, in_a, out_b, in_b):
    return np.outer(out_a, in_a) | np.outer(out_b, in_b)


def wrong_moved(out_a, in_a, out_b, in_b):
    return np.outer(out_a | out_b, in_a | in_b)  # also rows and columns that never met


print(check_moved(right_moved))

# %% [markdown]
# # Solutions of lesson 06
#
# `minicst lesson 6 --answers lessons/solutions/06_residual.py` runs them behind the lesson.


# %%
def right_union(rho, w):
    return 1 - (1 - rho) ** w


def wrong_union(rho, w):
    return rho**w  # all of them, not any


def wrong_union_2(rho, w):
    return rho * w  # more than 1 for many writers


print(check_union(right_union))


# %% [markdown]
# The stem reads the images, so its bits alone decide. The branch is fed only if the stem and conv1
# have a live channel each; then conv2's bits count.


# %%
def right_stream(stem, conv1, conv2):
    return stem | (conv2 & (stem.any() and conv1.any()))


def wrong_stream(stem, conv1, conv2):
    return stem | conv2  # also if nothing comes into conv2


def wrong_stream_2(stem, conv1, conv2):
    return stem & conv2  # as if one absent writer took the channel away


print(check_stream(right_stream))

# %% [markdown]
# # Solutions of lesson 19
#
# `minicst lesson 19 --answers lessons/solutions/19_released_code.py` runs them behind the lesson.


# %%
def right_recipe(r):
    return 300 * 3 / ((300 * 6 + 40 * 3) * r)


def wrong_recipe(r):
    return 3 / (6 * r)  # the search alone


def wrong_recipe_2(r):
    return 300 * 3 / (340 * 6 * r)  # fine-tuning as dear as the search


print(check_recipe(right_recipe))


# %% [markdown]
# In forward passes of a sub-network, a step of the search costs 2 + 2·2, one of fine-tuning 1 + 2.
# Channels with the same bit in both masks can't be what made the two losses differ; the symmetric
# form leaves them alone, and loses no signal by it.


# %%
def right_equal_bits(d, bit, s):
    return 0.0


def wrong_equal_bits(d, bit, s):
    return d * (bit - s) / (s * (1 - s)) ** 0.5  # one-sided


print(check_equal_bits(right_equal_bits))

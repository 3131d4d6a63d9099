# %% [markdown]
# # Solutions of lesson 17
#
# `minicst lesson 17 --answers lessons/solutions/17_network.py` runs them behind the lesson.


# %%
def right_saving(r, T):
    return 3 / (r * (3 + 1 / T))


def wrong_saving(r, T):
    return 3 / (r * 4 / T)  # as if steps 2 to T were free


print(check_saving(right_saving))

# %% [markdown]
# running ← .9 running + .1 batch, 16 times, keeps .9¹⁶ = 19% of the start. With momentum 1/i, the
# first batch replaces all of it.

# %%
right_stale = 0.9**16
wrong_stale = 1 - 0.9**16
print(check_stale(right_stale))

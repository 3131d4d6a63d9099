# %% [markdown]
# # Solutions of lesson 16
#
# `minicst lesson 16 --answers lessons/solutions/16_training.py` runs them behind the lesson.


# %%
def right_steps(lr):
    return 1 / (4 * lr**2)


def wrong_steps(lr):
    return 0.5 / lr  # as if all steps had one sign


print(check_steps(right_steps))

# %% [markdown]
# The mask can't differ from s at 0 and at 1, so there is no contrast to learn from. Close to them
# there is: rare draws with large scores.


# %%
def right_stuck(keep_prob):
    return (keep_prob == 0) | (keep_prob == 1)


def wrong_stuck(keep_prob):
    return keep_prob == 0


def wrong_stuck_2(keep_prob):
    return (keep_prob <= 0.01) | (keep_prob >= 0.99)


print(check_stuck(right_stuck))

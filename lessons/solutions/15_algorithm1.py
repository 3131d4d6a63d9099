# %% [markdown]
# # Solutions of lesson 15
#
# `minicst lesson 15 --answers lessons/solutions/15_algorithm1.py` runs them behind the lesson.


# %%
def right_z(loss_a, loss_b, mask_a, s, eta):
    return s - eta * (loss_a - loss_b) * (mask_a - s) / np.sqrt(s * (1 - s))


def wrong_z(loss_a, loss_b, mask_a, s, eta):
    return s + eta * (loss_a - loss_b) * (mask_a - s) / np.sqrt(s * (1 - s))  # uphill


def wrong_z_2(loss_a, loss_b, mask_a, s, eta):
    return s - eta * (loss_a - loss_b) * (mask_a - s) / (s * (1 - s))  # no H^½


print(check_z(right_z))


# %% [markdown]
# E (m - s)/(s (1 - s)) = 0 holds for masks drawn from p(m|s). A repaired mask is 1 more often than
# s says, so its score has a mean, and L(m′) would no longer drop out (lesson 11).


# %%
def right_scored_mask(drawn, used):
    return drawn[0]


def wrong_scored_mask(drawn, used):
    return used[0]  # what ran, but not what was drawn


print(check_scored_mask(right_scored_mask))

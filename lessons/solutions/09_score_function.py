# %% [markdown]
# # Solutions of lesson 09
#
# `minicst lesson 9 --answers lessons/solutions/09_score_function.py` runs them behind the lesson.


# %%
def right_difference(losses, masks, p, c):
    on = masks[:, c] == 1
    return np.average(losses[on], weights=p[on]) - np.average(losses[~on], weights=p[~on])


def wrong_difference(losses, masks, p, c):
    on = masks[:, c] == 1
    return p[on] @ losses[on] - p[~on] @ losses[~on]  # not divided by P(m_c)


def wrong_difference_2(losses, masks, p, c):
    on = masks[:, c] == 1
    return losses[on].mean() - losses[~on].mean()  # not weighted


print(check_difference(right_difference))


# %% [markdown]
# The factor s (1 - s) of the chain rule takes the denominator of the score away. Lesson 12 meets
# the same cancellation again: it is Hᵅ with α = 1.


# %%
def right_logit_score(mask, s):
    return mask - s


def wrong_logit_score(mask, s):
    return (mask - s) / (s * (1 - s))  # by s, not by the logit


print(check_logit_score(right_logit_score))

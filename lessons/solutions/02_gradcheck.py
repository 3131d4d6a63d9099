# %% [markdown]
# # Solutions of lesson 02
#
# `minicst lesson 2 --answers lessons/solutions/02_gradcheck.py` runs them behind the lesson.


# %% [markdown]
# Batch norm holds two things of each channel fixed, Σy = 0 and Σy² = N var / (var + ε). So its
# gradient loses what u has along 1 and along y. A trap for real: data and u drawn with one seed are
# the same numbers, and u = x is a mixture of both blind directions.


# %%
def right_blind(x):
    return norm(x)


def wrong_blind(x):
    return np.broadcast_to(np.arange(8.0), x.shape)  # constant down each channel


def wrong_blind_2(x):
    return x**2


print(check_blind(right_blind))

# %% [markdown]
# h/2 + ε/h is least where both are equal: h = √(2ε) = 2.1e-8.

# %%
right_step = np.sqrt(2 * np.finfo(float).eps)
wrong_step = 1e-5  # the central difference's
wrong_step_2 = 1e-12  # smaller isn't better

print(check_step(right_step))

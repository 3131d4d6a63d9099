# %% [markdown]
# # Solutions of lesson 04
#
# `minicst lesson 4 --answers lessons/solutions/04_batch_norm.py` runs them behind the lesson.


# %% [markdown]
# The running statistics come from steps in which the channel was mostly there, so in evaluation the
# constant is another one than in training, and it can be positive where β is negative.


# %%
def right_dead(gamma, beta, mean, var):
    return np.maximum(beta - gamma * mean / np.sqrt(var + 1e-5), 0)


def wrong_dead(gamma, beta, mean, var):
    return np.maximum(beta, 0)  # training


def wrong_dead_2(gamma, beta, mean, var):
    return np.zeros_like(beta)  # pruned


print(check_dead(right_dead))


# %%
def right_fold(W, gamma, beta, mean, var):
    a = gamma / np.sqrt(var + 1e-5)
    return W * a[:, None, None, None], beta - a * mean


def wrong_fold(W, gamma, beta, mean, var):
    a = gamma / np.sqrt(var + 1e-5)
    return W * a[:, None, None, None], beta  # the running mean is forgotten


def wrong_fold_2(W, gamma, beta, mean, var):
    a = gamma / np.sqrt(var + 1e-5)
    return W * a[:, None], beta - a * mean  # another axis than the filters'


print(check_fold(right_fold))

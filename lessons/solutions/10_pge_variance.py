# %% [markdown]
# # Solutions of lesson 10
#
# `minicst lesson 10 --answers lessons/solutions/10_pge_variance.py` runs them behind the lesson.


# %%
def right_baseline(losses, square, p):
    return p @ (square * losses) / (p @ square)


def wrong_baseline(losses, square, p):
    return p @ losses  # best at s = 1/2, where every mask has the same ‖∇ ln p‖²


def wrong_baseline_2(losses, square, p):
    return p @ (square * losses)  # weights that don't sum to 1


print(check_baseline(right_baseline))


# %% [markdown]
# The mean of N draws has the variance v / N; set it equal to (error · ‖∇Φ‖)². For a tenth of the
# gradient PGE on our network would take 73,150 forward passes for one update.


# %%
def right_draws(variance, gradient, error):
    return variance / (gradient @ gradient) / error**2


def wrong_draws(variance, gradient, error):
    return variance / (gradient @ gradient) / error  # as if the error fell with N


def wrong_draws_2(variance, gradient, error):
    return variance / np.linalg.norm(gradient) / error**2  # a variance against a length


print(check_draws(right_draws))

# %% [markdown]
# # Solutions of lesson 08
#
# `minicst lesson 8 --answers lessons/solutions/08_chain_rule.py` runs them behind the lesson.


# %%
def right_ste(error, z, m):
    return (error * z).sum(axis=0)  # m would be a factor of the weights' gradient, not of its own


def wrong_ste(error, z, m):
    return (error * m * z).sum(axis=0)  # 0 for every pruned neuron


def wrong_ste_2(error, z, m):
    return error * z  # an image each


print(check_ste(right_ste))

# %% [markdown]
# 4ρ² = 2ρ + ρ² gives ρ = 2/3. Below, Algorithm 1's ρ² pays for its second forward pass.

# %%
right_crossing = 2 / 3
wrong_crossing = 0.5
print(check_crossing(right_crossing))

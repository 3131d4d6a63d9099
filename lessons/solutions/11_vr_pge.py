# %% [markdown]
# # Solutions of lesson 11
#
# `minicst lesson 11 --answers lessons/solutions/11_vr_pge.py` runs them behind the lesson.


# %%
def right_symmetric(loss_a, loss_b, mask_a, mask_b, s):
    return (loss_a - loss_b) * (mask_a - mask_b) / (2 * np.sqrt(s * (1 - s)))


def wrong_symmetric(loss_a, loss_b, mask_a, mask_b, s):
    return (loss_a - loss_b) * (mask_a - mask_b) / np.sqrt(s * (1 - s))  # the sum of both


def wrong_symmetric_2(loss_a, loss_b, mask_a, mask_b, s):
    return (loss_a - loss_b) * (mask_a - mask_b) / (2 * s * (1 - s))  # no Hᵅ


print(check_symmetric(right_symmetric))


# %% [markdown]
# L_i - mean L = (1 - 1/k) L_i - (1/k) Σ of the others. The others are independent of m_i and drop
# out as in Eq. (13); (1 - 1/k) ∇Φ is left. With k = 2 half of the gradient is lost: a biased
# baseline with a harmless bias, as it's only a step size.

# %%
right_own_included = 3 / 4
wrong_own_included = 1  # as if the baseline were independent
wrong_own_included_2 = 1 / 4  # what is lost
print(check_own_included(right_own_included))

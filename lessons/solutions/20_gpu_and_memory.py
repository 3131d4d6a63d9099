# %% [markdown]
# # Solutions of lesson 20
#
# `minicst lesson 20 --answers lessons/solutions/20_gpu_and_memory.py` runs them behind the lesson.


# %%
def right_blocks(n, block):
    return -(-n // block)


def wrong_blocks(n, block):
    return n // block  # leaves out the rest


def wrong_blocks_2(n, block):
    return n // block + 1  # one too many where n is a multiple


print(check_blocks(right_blocks))


# %% [markdown]
# Threads beyond n return at once, so rounding up is safe. And of m′ only the forward pass is
# needed: no momentum comes with it, and nothing goes back.


# %%
def right_bytes(w, T):
    return 4 * (2 * w + w + 2 * w) / T


def wrong_bytes(w, T):
    return 4 * (2 * w + 2 * w) / T  # m alone


def wrong_bytes_2(w, T):
    return 4 * (2 * w + 2 * w + 2 * w) / T  # m′ with momentum


print(check_bytes(right_bytes))

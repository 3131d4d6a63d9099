# %% [markdown]
# # Solutions of lesson 07
#
# `minicst lesson 7 --answers lessons/solutions/07_counting.py` runs them behind the lesson.


# %%
def right_backward(macs):
    return 2 * sum(macs) - macs[0]


def wrong_backward(macs):
    return 2 * sum(macs)  # the paper's simplification


def wrong_backward_2(macs):
    return sum(macs)  # one gradient only


print(check_backward(right_backward))


# %% [markdown]
# fD + 2 fD ≥ forwards · fS + backwards · 2 fS. With two backward passes, as the released code
# runs them, the method pays below r = ½ only.


# %%
def right_break_even(forwards, backwards):
    return 3 / (forwards + 2 * backwards)


def wrong_break_even(forwards, backwards):
    return 3 / (forwards + backwards)  # backward is twice as long


def wrong_break_even_2(forwards, backwards):
    return (3 / (forwards + 2 * backwards)) ** 0.5  # the keep rate


print(check_break_even(right_break_even))

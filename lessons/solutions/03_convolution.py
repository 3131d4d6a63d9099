# %% [markdown]
# # Solutions of lesson 03
#
# `minicst lesson 3 --answers lessons/solutions/03_convolution.py` runs them behind the lesson.


# %%
def right_windows(size, k, stride, padding):
    return (size + 2 * padding - k) // stride + 1


def wrong_windows(size, k, stride, padding):
    return (size + 2 * padding - k) // stride  # the first window is missing


def wrong_windows_2(size, k, stride, padding):
    return (size + 2 * padding) // stride  # windows that hang over the edge


print(check_windows(right_windows))

# %% [markdown]
# Forward, gradient of the weights, gradient of the input: each multiplies n·oh·ow, k·k·c_in and
# c_out. That's why "backward costs twice the forward pass", except in the first layer, which needs
# no gradient of the images.


# %%
def right_macs(n, oh, ow, k, c_in, c_out):
    return 3 * n * oh * ow * k * k * c_in * c_out


def wrong_macs(n, oh, ow, k, c_in, c_out):
    return n * oh * ow * k * k * c_in * c_out  # forward alone


def wrong_macs_2(n, oh, ow, k, c_in, c_out):
    return 2 * n * oh * ow * k * k * c_in * c_out  # without the input's gradient


print(check_macs(right_macs))

# %% [markdown]
# # 02 · Gradient checks, and how all ones lie
#
# **You will see** that two forward passes tell a right gradient rule from a wrong one, if the
# gradient that comes from above is drawn at random: under all ones, batch norm lets plainly wrong
# rules pass.
#
# **You need** lesson 01 (the tape).
#
# **In the paper** nothing: it is how we know that what is tested against the paper computes what it
# says.
#
# **Takes** 2 seconds on 2 cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minicst.functional as F
from minicst import Function, Tensor, gradcheck

plt.style.use("minicst.style")

# %% [markdown]
# **The step.** (f(x + h) - f(x - h)) / 2h is off by h²·f‴/6, *truncation*. Floating point adds
# *rounding*: f carries a relative error of about ε = 2.2e-16, which is divided by h. Small h trades
# one for the other; the sum h²/6 + ε/h, relative for f = eˣ, is least at h = ∛(3ε), about 1e-5. The
# one-sided (f(x + h) - f(x)) / h has truncation h/2 and does worse; and in float32, ε = 1.2e-7, so
# no digit beyond the fifth can be checked. Truncation at h = 0.01 must be 0.01²/6 = 1.7e-5.


# %%
def errors(dtype, steps, one_sided=False):
    x, h = dtype(1), steps.astype(dtype)
    below = x if one_sided else x - h
    slope = (np.exp(x + h) - np.exp(below)) / (x + h - below)
    return np.abs(slope / np.exp(1.0) - 1)


steps = 10.0 ** np.arange(-1, -14, -0.25)
central = errors(np.float64, steps)
print(f"error at h = 0.01: {central[4]:.1e}; least error below 1e-9: {central.min() < 1e-9}")
print(f"best h by theory: {np.cbrt(3 * np.finfo(float).eps):.0e}")

# %%
fig, ax = plt.subplots()
ax.loglog(steps, central, "o-", label="central, float64")
ax.loglog(steps, errors(np.float64, steps, one_sided=True), "s--", label="one-sided, float64")
ax.loglog(steps[:21], errors(np.float32, steps[:21]), "^:", label="central, float32")
ax.loglog(steps, steps**2 / 6, color="black", linewidth=1, label="truncation h²/6")
ax.loglog(steps, 2.2e-16 / steps, "-.", color="black", linewidth=1, label="rounding ε/h")
ax.set(xlabel="step h", ylabel="relative error of the slope", ylim=(1e-13, 1))
ax.set_title("Error of a difference quotient of eˣ at x = 1, against its step")
legend = ax.legend(ncols=2)

# %% [markdown]
# **Directions.** A function of a thousand inputs has a thousand columns of derivatives, J. One
# number checks them all: draw a direction v in the input and a gradient u from above (a
# *cotangent*), and compare ⟨u, J v⟩, which takes two forward passes, with ⟨Jᵀu, v⟩, one backward
# pass. A wrong entry hides only if the draws happen to miss it. Below, the function is batch norm
# without scale and shift: each channel gets y = (x - mean) / √(var + ε). Lesson 04 derives the
# rule.


# %%
def norm(x):
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)


def rule(u, x):
    y, inv_std = norm(x), 1 / np.sqrt(x.var(axis=0) + 1e-5)
    return inv_std * (u - u.mean(axis=0) - y * (u * y).mean(axis=0))


def error_of(rule, u, h=1e-5):
    numeric = np.sum(u * (norm(x + h * v) - norm(x - h * v))) / (2 * h)
    return abs(np.sum(rule(u, x) * v) - numeric) / max(1, abs(numeric))


rng = np.random.default_rng(2)  # another seed than gradcheck's 0
x, v, u = rng.standard_normal((3, 64, 8))
print(f"the rule, random u: error below 1e-8: {error_of(rule, u) < 1e-8}")

# %% [markdown]
# **The lie.** The lazy choice for u is all ones: sum the output, call backward. But batch norm
# makes each channel's mean 0, so Σy = 0 for every x: a constant, and its gradient is 0. Twice the
# right rule gives 2·0 and passes; so do its negative, a rule that forgets the third term, and one
# that returns zeros. Only the rule that forgets the mean of u is found. A random u finds all five.

# %%
wrong_rules = {
    "twice the rule": lambda u, x: 2 * rule(u, x),
    "its negative": lambda u, x: -rule(u, x),
    "no third term": lambda u, x: (u - u.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5),
    "zeros": lambda u, x: 0 * x,
    "no mean term": lambda u, x: rule(u, x) + u.mean(axis=0) / np.sqrt(x.var(axis=0) + 1e-5),
}
print("error with         all ones   random u")
for name, wrong in wrong_rules.items():
    print(f"{name:18} {error_of(wrong, np.ones_like(x)):8.3f} {error_of(wrong, u):10.2f}")

# %% [markdown]
# **The package's check** does this for any function of tensors: three draws of (u, v) for each
# input, an error for a gradient that differs. Let it look at an operation whose backward is twice
# too large.


# %%
class DoubledNorm(Function):
    def forward(self, x):
        self.save(x)
        return norm(x)

    def backward(self, u):
        return (2 * rule(u, *self.saved),)


tensor = Tensor(x, requires_grad=True)
DoubledNorm.apply(tensor).sum().backward()
print("largest gradient under all ones is 0:", np.abs(tensor.grad).max() < 1e-12)
try:
    gradcheck(DoubledNorm.apply, tensor)
except ValueError as error:
    print(str(error).split(", shape")[0], "is wrong")

# %% [markdown]
# **Kinks.** ReLU has no slope at 0, and a difference across 0 gives neither side's: at x = 0.3 h it
# is (1.3 h - 0) / 2h = 0.65, where the rule says 1, so a right rule fails the check. A smaller step
# makes that rarer. For networks one therefore goes below the best step of smooth functions:
# `gradcheck` takes h = 1e-6, and names a kink among its suspects.

# %%
for h in (1e-5, 1e-6):
    at = 0.3e-5
    print(f"h = {h:.0e}: slope of ReLU at 3e-6 {(max(at + h, 0) - max(at - h, 0)) / (2 * h):.2f}")

# %% [markdown]
# Last, the package's own batch norm: its gradient under the random u is that of the rule above, and
# its check passes.

# %%
gamma, beta = Tensor(np.ones(8)), Tensor(np.zeros(8))
tensor = Tensor(x, requires_grad=True)
F.batch_norm(tensor, gamma, beta).backward(u)
assert np.allclose(tensor.grad, rule(u, x), rtol=1e-10, atol=1e-12)
assert gradcheck(lambda t: F.batch_norm(t, gamma, beta), tensor) < 1e-6
print("the rule is minicst's, and gradcheck accepts it")

# %% [markdown]
# **Exercise 1.** All ones isn't the only blind u. Write `f(x)` that returns another one, different
# from row to row, under which batch norm's gradient (nearly) vanishes. Think of Σy².
# **Exercise 2.** The one-sided quotient is off by h/2 + ε/h. Which h is best?


# %%
def check_blind(answer):
    """answer(x): u of x's shape, not constant down a channel, with nearly no gradient."""
    u = np.asarray(answer(x))
    if u.shape != x.shape:
        return f"wrong: u has the output's shape, {x.shape}, not {u.shape}"
    if np.allclose(u, u[0]):
        return "wrong: one number a channel is all ones again, scaled"
    share = np.abs(rule(u, x)).max() / np.abs(u).max()
    if share < 1e-4:
        return "right: Σy² is constant too (up to ε), so u = y, or x itself, is blind"
    return f"wrong: the gradient reaches {share:.2f} of u; what else does normalizing hold fixed?"


def check_step(answer):
    """answer: the best step of a one-sided difference."""
    if 1e-8 <= answer <= 5e-8:
        return "right: h = √(2ε), 2e-8; the error is no better than that"
    if 1e-6 <= answer <= 5e-5:
        return "wrong: that's ∛(3ε), of the central difference"
    return "wrong: set the derivative 1/2 - ε/h² to zero"

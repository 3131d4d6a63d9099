# %% [markdown]
# # 01 · A tape in 60 lines
#
# **You will see** that all gradients of this package come from one loop over remembered operations,
# and that less than sixty lines of NumPy give the same numbers.
#
# **You need** NumPy, and the chain rule for functions of several variables.
#
# **In the paper** taken for granted, as "the chain rule" (Sec. 4.2.1). No formula is needed yet.
#
# **Takes** 1 second on 2 cores.

# %% [markdown]
# **The rules.** Let ℓ be what is differentiated and g = ∂ℓ/∂out what arrives at an operation's
# result. Backward turns g into each input's gradient: g and g for a + b, g·b and g·a for a·b, g Bᵀ
# and Aᵀ g for the matrix product A B; ReLU passes g where its input is positive, a sum hands g to
# every summand. There is one rule for each input, so that any may be left out.

# %%
from functools import partial, partialmethod
from types import SimpleNamespace

import numpy as np

import minicst.functional as F
from minicst import Tensor, data

RULES = {  # name: forward, then for each input what it makes of g
    "add": (lambda a, b: a + b, lambda g, a, b: g, lambda g, a, b: g),
    "mul": (lambda a, b: a * b, lambda g, a, b: g * b, lambda g, a, b: g * a),
    "matmul": (lambda a, b: a @ b, lambda g, a, b: g @ b.T, lambda g, a, b: a.T @ g),
    "relu": (lambda x: np.maximum(x, 0), lambda g, x: g * (x > 0)),
    "sum": (lambda x: x.sum(), lambda g, x: np.broadcast_to(g, x.shape)),
}

# %% [markdown]
# **Recording.** A `Value` is an array that remembers its *creator*, the function that made it,
# which remembers its inputs. These links are the *tape*. Values without a creator are leaves:
# images, weights. `needs_grad` says which inputs require a gradient; if none does, nothing is
# recorded.


# %%
def apply(*inputs, name):
    inputs = [x if isinstance(x, Value) else Value(x) for x in inputs]
    needs_grad = [x.requires_grad for x in inputs]
    function = SimpleNamespace(name=name, inputs=inputs, needs_grad=needs_grad)
    result = RULES[name][0](*(x.data for x in inputs))
    return Value(result, any(needs_grad), function if any(needs_grad) else None)


class Value:
    def __init__(self, array, requires_grad=False, creator=None):
        self.data, self.grad = np.asarray(array, float), None
        self.requires_grad, self.creator = requires_grad, creator

    __add__ = partialmethod(apply, name="add")
    __mul__ = partialmethod(apply, name="mul")
    __matmul__ = partialmethod(apply, name="matmul")


# %% [markdown]
# **The order.** A value used twice gets a share of its gradient from each use, and dℓ/dx is the
# sum. So it may hand on only after *all* its users have: list inputs before results (a topological
# order) and walk from the end. A stack makes the list, as recursion fails at 1000 nested calls.
# **Broadcasting** uses values, too: a (10,) bias added to (64, 10) logits is used 64 times, so its
# gradient is the sum of 64 rows of g.


# %%
def topological_order(last):
    order, seen, stack = [], set(), [(last, False)]
    while stack:
        value, inputs_done = stack.pop()
        if inputs_done:
            order.append(value)
        elif value.requires_grad and value not in seen:
            seen.add(value)
            inputs = getattr(value.creator, "inputs", ())  # none for a leaf
            stack += [(value, True), *((x, False) for x in inputs)]
    return order


def unbroadcast(g, shape):
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))  # axes put in front
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


# %% [markdown]
# **Backward** starts with ∂ℓ/∂ℓ = 1. A leaf adds what arrives to `grad`, on top of earlier calls;
# this is why a training step zeroes gradients first. Any other value hands on, then forgets its
# creator: the tape keeps all arrays of the forward pass alive, most of the memory of training, and
# what lies behind isn't needed again. So a tape is walked once; another walk needs another forward.


# %%
def backward(loss):
    grads = {loss: np.ones_like(loss.data)}
    for value in reversed(topological_order(loss)):
        g, f = grads.pop(value), value.creator
        if f is None:
            value.grad = g if value.grad is None else value.grad + g
            continue
        for x, needs, rule in zip(f.inputs, f.needs_grad, RULES[f.name][1:], strict=True):
            if needs:
                share = unbroadcast(rule(g, *(y.data for y in f.inputs)), x.data.shape)
                grads[x] = grads[x] + share if x in grads else share
        value.creator, value.requires_grad = None, False


# %% [markdown]
# By hand: z = x·y + x has ∂z/∂x = y + 1 and ∂z/∂y = x, so 5 and 3 at x = 3, y = 4. Here x is used
# twice: the product sends it 4, the sum 1. A second forward and backward adds another 5 to x.grad,
# and a tape of 5000 additions, walked like any other, adds 1.

# %%
x, y = Value(3.0, requires_grad=True), Value(4.0, requires_grad=True)
backward(x * y + x)
print(f"∂z/∂x = {x.grad:.0f}, ∂z/∂y = {y.grad:.0f}")
for another in (x * y + x, sum([1.0] * 5000, x)):  # x + 1 + ... + 1
    backward(another)
    print(f"another pass, x.grad = {x.grad:.0f}")

# %% [markdown]
# **A network.** 64 digits of 8×8 pixels, 64 → 16 → 10, ℓ = (1/64) Σ (logit - target)². Its nine
# operations are printed from the end, as backward walks them. A matrix product takes one product
# forward and one for each input that needs a gradient. The last one needs both, 2·64·16·10 = 20,480
# multiply-adds; the first reads images, which need none: 64·64·16 = 65,536, no more than forward.


# %%
def loss_of(x, w1, b1, w2, b2, relu, total):
    error = relu(x @ w1 + b1) @ w2 + b2 + (-np.eye(10)[digits.train_labels[:64]])
    return total(error * error) * (1 / 64)


digits, rng = data.load_dataset("digits"), np.random.default_rng(0)
images = digits.train_images[:64].reshape(64, 64) / digits.max_value
start = [0.1 * rng.standard_normal(shape) for shape in [(64, 16), (16,), (16, 10), (10,)]]
weights = [Value(w, requires_grad=True) for w in start]
loss = loss_of(Value(images), *weights, partial(apply, name="relu"), partial(apply, name="sum"))
made = [v.creator for v in reversed(topological_order(loss)) if v.creator]
print(*(f.name for f in made))
for f in (f for f in made if f.name == "matmul"):
    macs = f.inputs[0].data.size * f.inputs[1].data.shape[1] * sum(f.needs_grad)
    print(f"matmul, needs_grad {f.needs_grad}: {macs:,} multiply-adds backward")

# %% [markdown]
# minicst's `Tensor` is this `Value` grown up: a class with forward and backward for each operation,
# which saves only what its backward needs, on arrays of a CPU or a GPU. Gradients must be the same.

# %%
backward(loss)
theirs = [Tensor(w, requires_grad=True) for w in start]
loss_of(Tensor(images), *theirs, F.relu, F.sum).backward()
assert all(np.allclose(own.grad, their.grad) for own, their in zip(weights, theirs, strict=True))
print("all four gradients equal minicst's")

# %% [markdown]
# **Exercise 1.** Write the backward of a / b: `f(g, a, b)` returns both gradients, for a (4, 3) and
# b (3,), which is broadcast. **Exercise 2.** y = x, then twenty times y = y + y: ∂y/∂x = 2²⁰. How
# many functions does `backward` run?


# %%
def check_divide(answer):
    """answer(g, a, b): gradients of a (4, 3) / b (3,), in the shapes of a and b."""
    g, a, b = np.full((4, 3), 2.0), np.arange(12.0).reshape(4, 3), np.array([1.0, 2.0, 4.0])
    to_a, to_b = answer(g, a, b)
    if np.shape(to_b) != (3,):
        return f"wrong: b is (3,), its gradient {np.shape(to_b)}: sum what was broadcast"
    right = np.allclose(to_a, g / b) and np.allclose(to_b, -(g * a / b**2).sum(axis=0))
    return "right: g / b and -Σ g·a / b²" if right else "wrong: ∂/∂a is 1/b, ∂/∂b is -a / b²"


def check_runs(answer):
    """answer: functions that backward runs for twenty doublings."""
    if answer in (2**20, 2**20 - 1):
        return "wrong: that's a call for each way to x; a function runs once, when g is complete"
    return "right: each sum once" if answer == 20 else "wrong: how many sums were recorded?"

# %% [markdown]
# # 04 · Batch norm, and why a masked channel leaks β
#
# **You will see** that batch norm turns a filter masked to zero into the constant β, which the next
# layer reads, so that masked differs from pruned unless the mask acts after batch norm.
#
# **You need** lessons 02 (batch norm's rule, checked) and 03 (convolution).
#
# **In the paper** Sec. 4.1, x_out,c = x_in ∗ (F_c m_c) [eq2]: the mask sits on the filter. What
# batch norm makes of the zeros isn't said; the released code masks filters, too.
#
# **Takes** 2 seconds on 2 cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import minicst.functional as F
from minicst import Tensor, data, models, sparse
from minicst.nn.node import Context

plt.style.use("minicst.style")
rng = np.random.default_rng(0)
x, g = rng.normal(5, 2, (4096, 3)), rng.standard_normal((4096, 3))
gamma, beta = np.array([1.0, 0.5, 2.0]), np.array([0.0, 3.0, -1.0])

# %% [markdown]
# **Training.** Each channel is normalized over the N numbers that it has in the batch, all pixels
# of all images: x̂ = (x - μ) / σ, with μ the mean and σ = √(var + ε), ε = 1e-5. Then out = γ x̂ +
# β, with γ and β learned. So whatever comes in, if it varies, what goes out has mean β and standard
# deviation γ: below 0, 3, -1 and 1, 0.5, 2.


# %%
def normalize(x, gamma, beta, eps=1e-5):
    inv_std = 1 / np.sqrt(x.var(axis=0) + eps)  # divided by N, not N - 1
    x_hat = (x - x.mean(axis=0)) * inv_std
    return gamma * x_hat + beta, x_hat, inv_std


out, x_hat, inv_std = normalize(x, gamma, beta)
print("mean", out.mean(axis=0).round(3) + 0.0, "standard deviation", out.std(axis=0).round(3))

# %% [markdown]
# **Backward.** x_i acts in three ways: by itself, through μ and through σ. As ∂μ/∂x_i = 1/N and
# ∂σ/∂x_i = x̂_i/N, ∂x̂_j/∂x_i = (δ_ij - 1/N - x̂_j x̂_i/N) / σ. Times γ g_j and summed over j:
# ∂ℓ/∂x_i = (γ/σ) (g_i - mean(g) - x̂_i mean(g x̂)); and ∂ℓ/∂γ = Σ g x̂, ∂ℓ/∂β = Σ g. The second
# term removes what g has along 1, the third what it has along x̂ (up to ε): lesson 02's two blind
# directions. So Σ ∂ℓ/∂x = 0 and Σ x̂ ∂ℓ/∂x = 0.000.

# %%
grad_gamma, grad_beta = (g * x_hat).sum(axis=0), g.sum(axis=0)
grad_x = gamma * inv_std * (g - grad_beta / len(g) - x_hat * grad_gamma / len(g))
print(f"Σ ∂ℓ/∂x {abs(grad_x.sum(axis=0)).max():.3f}", end=", ")
print(f"Σ x̂ ∂ℓ/∂x {abs((x_hat * grad_x).sum(axis=0)).max():.3f}")

# %% [markdown]
# **Evaluation.** One image must not depend on others, so μ and var are replaced by running ones:
# running ← 0.9 running + 0.1 batch, from 0 and 1, the batch's variance times N / (N - 1) (unbiased,
# as in PyTorch). After one batch of mean 5 the running mean is 0.5, after 30 it is 5 (1 - 0.9³⁰) =
# 4.8. With μ and σ constant batch norm is affine, a x + b with a = γ/σ and b = β - a μ, and
# backward has one term, a g. The package's one function for both modes must agree with all of this.

# %%
tensors = [Tensor(array, requires_grad=True) for array in (x, gamma, beta)]
mean, var, own = np.zeros(3), np.ones(3), np.array([np.zeros(3), np.ones(3)])
for _ in range(30):
    theirs = F.batch_norm(*tensors, mean, var, training=True)  # moves mean and var
    own = 0.9 * own + 0.1 * np.array([x.mean(axis=0), x.var(axis=0, ddof=1)])
theirs.backward(g)
assert np.allclose(theirs.data, out)
for tensor, grad in zip(tensors, (grad_x, grad_gamma, grad_beta), strict=True):
    assert np.allclose(tensor.grad, grad)
    tensor.zero_grad()
a = gamma / np.sqrt(own[1] + 1e-5)
evaluated = F.batch_norm(*tensors, mean, var, training=False)
evaluated.backward(g)
assert np.allclose([evaluated.data, tensors[0].grad], [a * (x - own[0]) + beta, a * g])
print(f"both modes equal minicst's; running mean {mean[0]:.1f}, variance {var[0]:.1f}")

# %% [markdown]
# **The leak.** Mask a filter, F_c m_c with m_c = 0. Its output is 0 at every pixel, as the formula
# says. But then μ = 0 and var = 0, so x̂ = 0 / √ε = 0, and out = γ·0 + β = β. After ReLU the absent
# channel is the constant max(β, 0), and the next layer reads it. Here is the network of the next
# lesson, channel 1 of conv1 masked, every β set to 0.5 (before training all are 0, and the leak
# can't be seen). mask_position="filter" is the paper's formula, "after-norm" is what minicst does.

# %%
digits = data.load_dataset("digits")
images = ((digits.train_images / digits.max_value - digits.mean) / digits.std)[:64]
network = models.build("vgg-tiny", in_channels=1, width=0.1).astype(np.float64)
beta_of = {name: norm.beta for name, norm in network.norms().items()}
for parameter in beta_of.values():
    parameter.data[:] = 0.5
mask = np.array([1, 0, 1, 0, 1, 1, 1, 0], bool)  # conv1 has 2 filters, conv2 3, conv3 3
forms = {p: sparse.masked(network, mask, mask_position=p) for p in ("filter", "after-norm")}
for position, form in forms.items():
    context = Context(training=True, track=False, live=form.live, mask_position=position)
    seen = network.nodes["conv1"].forward("conv1", [Tensor(images)], context).data
    print(f"mask on {position:10}: channel 1 is", *np.unique(seen[..., 1]))

# %% [markdown]
# **Masked is not pruned.** A pruned network lacks that channel: what comes from there is nothing.
# With the mask after batch norm, on γ and β too, the masked network computes what the cut one does;
# with the mask on the filter it doesn't, though it is counted as if the channel were absent. The
# filter's own gradient is 0 either way, as Sec. 4.2.1 says. But on the filter, β of the absent
# channel 2 of conv3 gets a gradient: the error arrives at a channel that should not be there. (The
# loss is *cross-entropy*: ten outputs x, the logits, become probabilities eˣ / Σ eˣ; the loss is
# -ln of the right class's, averaged over images. Its unit is the nat.)


# %%
def cut():
    return sparse.cut(network, mask)


def loss_of(form):
    return F.cross_entropy(form(images, training=True, track=False), digits.train_labels[:64])


for name, form in {**forms, "cut": cut()}.items():
    network.zero_grad()
    loss = loss_of(form)
    loss.backward()
    grad = form.network.nodes["conv3"].norm.beta.grad
    print(f"{name:10} loss {loss.item():.3f}, ∂ℓ/∂β of conv3", (grad.round(3) + 0.0).tolist())

# %% [markdown]
# **How much.** Set β of *one* absent channel and all others to 0. ReLU clips a negative β: no leak.
# A positive one in conv1 or conv2 shifts the next convolution by a constant, which that one's batch
# norm subtracts again, but for the border, where windows hang over into zeros: at most a few
# hundredths of a nat. What the last convolution leaks goes straight to the classifier: over 1 nat
# at β = 2.

# %%
fig, ax = plt.subplots()
for name, channel, style in (("conv1", 1, "o-"), ("conv2", 1, "s--"), ("conv3", 2, "^:")):
    added = []
    for value in (values := np.linspace(-1, 2, 7)):
        for other, parameter in beta_of.items():
            parameter.data[:] = value * (np.arange(parameter.size) == channel) * (other == name)
        leaky, after_norm, pruned = (loss_of(form).item() for form in (*forms.values(), cut()))
        assert abs(after_norm - pruned) < 1e-12
        added.append(leaky - pruned)
    ax.plot(values, added, style, label=f"channel {channel} of {name}")
    print(f"{name}: at β = 2 the leak adds {round(added[-1], 2) + 0.0:.2f} nats")
ax.set(xlabel="β of the absent channel", ylabel="added loss, nats")
ax.set_title("What an absent channel adds to the loss if the mask is on its filter")
legend = ax.legend()
print("masked after batch norm equals cut, to 1e-12, at all 21 points")

# %% [markdown]
# **Exercise 1.** In evaluation the running mean is subtracted, not the batch's 0. What does a
# channel with a masked filter then put out after ReLU? Write `f(gamma, beta, mean, var)`.
# **Exercise 2.** Fold batch norm in evaluation into the convolution before it: write `f(W, gamma,
# beta, mean, var)` that returns its new filters and biases.


# %%
def check_dead(answer):
    """answer(gamma, beta, mean, var): a masked filter's channel in evaluation, after ReLU."""
    gamma, beta, mean, var = np.array([[2, 1, 1], [0.5, 0.5, -3], [-1, 1, 0], [4, 4, 4]], float)
    got, out = np.asarray(answer(gamma, beta, mean, var)), beta - gamma * mean / np.sqrt(var + 1e-5)
    if np.allclose(got, np.maximum(beta, 0)):
        return "wrong: that's training, where the batch's own mean, 0, is subtracted"
    right = np.allclose(got, np.maximum(out, 0), atol=1e-4)
    return "right: max(β - γ μ/σ, 0)" if right else "wrong: put x = 0 into a x + b, then ReLU"


def check_fold(answer):
    """answer(W, gamma, beta, mean, var): filters and biases of one convolution."""
    W, m, v = np.random.default_rng(1).standard_normal((3, 3, 3, 1)), np.arange(3.0), np.ones(3) * 4
    got, bias = answer(W, gamma0 := m + 1, m - 2, m, v)
    a = gamma0 / np.sqrt(v + 1e-5)
    if not np.allclose(got, W * a[:, None, None, None], atol=1e-4):
        return "wrong: filter c, W[c], is multiplied by a_c = γ_c/σ_c"
    right = np.allclose(bias, m - 2 - a * m, atol=1e-4)
    return "right: a W and β - a μ" if right else "wrong: the bias is β - a μ"

"""Two chain-rule estimators of the paper's Section 3, as channel methods: STE and Gumbel-softmax.

Everything but the gradient of keep_prob is Algorithm 1's: same groups, budget, optimizer,
projection and final mask. The gradient here is dL/dm by the tape, times dm/ds. The tape needs the
output of every channel, pruned ones too, and the gradient that arrives there: nothing can be cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import minicst.functional as F
from minicst.autograd import Function, Parameter, Tensor
from minicst.backend.base import Array
from minicst.data import Batch
from minicst.methods.base import Hyper, Plan, clip_gradients, on_device
from minicst.methods.completely_sparse import CompletelySparse
from minicst.methods.trace import StepTrace, Stopwatch
from minicst.nn import Network, Norm, Unit
from minicst.randomness import rng_for
from minicst.sparse.liveness import reached, repair
from minicst.sparse.masked_form import masked
from minicst.sparse.masks import checked_keep_prob

GUMBEL_FORWARDS = ("soft", "hard")
# What only Algorithm 1 reads; anything but the default would be ignored without a word.
_NOT_READ = (
    "estimator",
    "n_masks",
    "baseline_decay",
    "precondition_power",
    "resample_every",
    "backward_masks",
    "mask_position",
)


# Far below rounding beside any live channel, far above the smallest float32.
TINY = 2.0**-80


class Gate(Function):
    """m x, one entry of m a channel;  g m, sum g x over all but the channels.

    Forward, max(m, TINY) takes m's place. At m = 0 exactly, ReLU after an add would have slope 0
    and max pooling would pick the first of equal zeros, so that the gradient of m would not be the
    derivative from inside the set of masks. The TINY rest keeps signs and order, and vanishes in
    every sum with a live channel. Backward, x gets g m: a pruned filter's gradient is exactly 0
    (that of the weights that read it is of the order of TINY, and they are frozen).
    """

    def forward(self, x: Array, m: Array) -> Array:
        """Return max(m, TINY) x."""
        self.save(x, m)
        return x * self.xp.maximum(m, TINY).astype(x.dtype)

    def backward(self, g: Array) -> tuple[Array | None, ...]:
        """Return the gradients of x and m."""
        x, m = self.saved
        grad_x = g * m if self.needs_grad[0] else None
        if not self.needs_grad[1]:
            return grad_x, None
        # In float64: a layer's sum has up to a million terms.
        total = (g * x).reshape(-1, m.size).sum(axis=0, dtype=np.float64)
        return grad_x, total.astype(m.dtype)


@dataclass
class GatedNetwork:
    """A full network whose masks are on the tape: after backward, `mask.grad` is dL/dm.

    Each node of a group goes through a Gate where it ends, so that gradients of an entry that
    several nodes share (tied residual streams, a shortcut) add up. In a unit that is after batch
    norm and ReLU: gamma and beta are inside. For m >= 0 it is relu(m z) = m relu(z), Algorithm 1's
    mask position.

    Attributes:
        network: the full network.
        mask: (n,) m, of the network's dtype.
        unreached: {unit: bool (channels,)} where nothing live comes in. Batch norm would turn that
            into its beta; as in the masked and the cut form, it is 0 there.
    """

    network: Network
    mask: Parameter
    unreached: dict[str, np.ndarray]

    def __call__(self, x: Any, training: bool, track: bool = True, step: int = 0) -> Tensor:
        """Run the dense network; every channel is computed, whatever its mask."""
        return self.network(x, training=training, track=track, step=step, gate=self._gate)

    def _gate(self, name: str, out: Tensor) -> Tensor:
        """Output of a node behind its gate."""
        own = self.network.own(name, np.arange(self.network.n_maskable))
        if own is not None:
            out = Gate.apply(out, F.channel_slice(self.mask, own))
        if name in self.unreached:
            out = out * (~self.unreached[name]).astype(out.dtype)
        return out


def gated(network: Network, mask: ArrayLike) -> GatedNetwork:
    """Put the masks of a network on the tape.

    dL/dm_c = sum over the nodes that write channel c of <dL/d(m_c y_c), y_c>, y_c the channel's
    output. It needs y_c and dL/d(m_c y_c) where m_c = 0 too, and isn't 0 there: the gradient is the
    limit of those at max(m, e), e > 0.

    Paper: Sec. 3, Eq. (1), all but its last factor [eq1]
    Differs: m multiplies batch norm's output (and ReLU's), the paper's the filter. What is not
        reached by anything live is 0, and its masks get no gradient there.

    Args:
        network: the full network.
        mask: (n_maskable,), >= 0; soft or 0/1. Empty groups should have been repaired.

    Raises:
        ValueError: if the mask has another length, or an entry that is negative or NaN; or if a
            unit is masked weight by weight: gates stand behind channels.
    """
    if by_weight := network.weight_units():
        raise ValueError(
            f"unit '{min(by_weight)}' is masked weight by weight, and the chain-rule methods (ste, "
            "gumbel) mask channels: build the network with linear_masks channels"
        )
    mask = np.asarray(mask, np.float64)
    if mask.shape != (network.n_maskable,) or not (mask >= 0.0).all():
        raise ValueError(
            f"mask of shape {mask.shape}: network {network.name} takes ({network.n_maskable},) "
            "numbers >= 0, one for every maskable channel"
        )
    live = reached(network, mask > 0.0)
    unreached = {}
    for name, node in network.nodes.items():
        if not isinstance(node, (Unit, Norm)):  # the others give 0 for 0
            continue
        nothing = ~node.alive([live[read] for read in network.inputs[name]], None)
        if not nothing.all():
            # A depthwise channel whose own mask is 0 is 0 anyway; its gradient is kept.
            own = network.own(name, mask)
            nothing &= True if own is None else own > 0.0
        if nothing.any():
            unreached[name] = nothing
    gates = Parameter(mask.astype(network.parameters()[0].dtype), backend=network.backend)
    return GatedNetwork(network, gates, unreached)


def relaxed_mask(
    keep_prob: ArrayLike, uniform: ArrayLike, temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Relaxed (binary concrete) mask and its derivative by s.

        m = sigmoid((logit s + ln((1 - U) / U)) / T)        dm/ds = m (1 - m) / (T s (1 - s))

    ln((1 - U) / U) is logistic noise, the difference of two Gumbel ones. It is written with U so
    that m > 1/2 where U < s: with the same U, rounding the relaxed mask gives the Bernoulli draw
    of `sample_mask`, whatever T is. s = 0 gives m = 0 and s = 1 gives m = 1; the derivative there
    is the limit, 0 for T < 1: the channel is decided for good.

    Source: Maddison, Mnih, Teh, "The Concrete Distribution" (2017); Jang, Gu, Poole, "Categorical
    Reparameterization with Gumbel-Softmax" (2017)
    Paper: Sec. 3, case (iv) of Eq. (1), Gumbel-softmax, dm/ds [eq1]

    Args:
        keep_prob: s, shape (n,), in [0, 1].
        uniform: U, shape (n,), in [0, 1].
        temperature: T in (0, 1]. Above 1 the derivative has no bound as s goes to 0 or 1.

    Returns:
        ``(mask, slope)``: m in [0, 1] and dm/ds >= 0, float64, shape (n,).

    Raises:
        ValueError: if shapes or ranges don't fit.
    """
    s = checked_keep_prob(keep_prob)
    uniform = np.asarray(uniform, np.float64)
    if uniform.shape != s.shape or not ((uniform >= 0.0) & (uniform <= 1.0)).all():
        raise ValueError(
            f"uniform of shape {uniform.shape}: one number in [0, 1] for each of the {s.size} "
            "entries of keep_prob is needed"
        )
    if not 0.0 < temperature <= 1.0:
        raise ValueError(f"temperature {temperature}: it must be in (0, 1]")
    # Half a step of the generator: the logarithms stay finite.
    u = np.clip(uniform, 2.0**-54, 1.0 - 2.0**-53)
    noise = np.log1p(-u) - np.log(u)
    with np.errstate(divide="ignore"):  # s in {0, 1}: an infinite logit, m exactly 0 or 1
        logit = np.log(s) - np.log1p(-s)
    mask = np.exp(-np.logaddexp(0.0, -(logit + noise) / temperature))
    # In logarithms, since m (1 - m) and s (1 - s) go to 0 together.
    inside = np.clip(s, np.finfo(np.float64).tiny, 1.0 - 2.0**-53)
    log_variance = np.log(inside) + np.log1p(-inside)
    x = (np.log(inside) - np.log1p(-inside) + noise) / temperature
    slope = np.exp(-np.logaddexp(0.0, -x) - np.logaddexp(0.0, x) - log_variance) / temperature
    if temperature < 1.0:
        slope[(s == 0.0) | (s == 1.0)] = 0.0
    return mask, slope


class ChainRule(CompletelySparse):
    """Base of STE and Gumbel-softmax: one dense forward and one dense backward pass a step.

        dL/ds_c = (dL/dm_c) (dm_c/ds_c)

    Paper: Sec. 3, Eq. (1) [eq1]
    Differs: forward could skip the zero inputs, at keep_rate of the dense cost; it runs dense
    here. With a hard mask, absent entries of the weights are frozen as in Algorithm 1, so that
    only the gradient of keep_prob differs: their gradient is 0, but in published chain-rule methods
    decay and momentum go on moving them. Batch norm's running statistics move for all channels.
    No preconditioner: H^alpha belongs to VR-PGE.
    """

    name = ""

    def __init__(self, network: Network, hyper: Hyper, plan: Plan) -> None:
        plain = Hyper()
        for key in _NOT_READ:
            if (value := getattr(hyper, key)) != (default := getattr(plain, key)):
                raise ValueError(
                    f"--method {self.name} takes the gradient by the chain rule and doesn't read "
                    f"--{key.replace('_', '-')} {value}: leave it at {default}"
                )
        super().__init__(network, hyper, plan)

    def surrogate(self, uniform: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Return the mask of the forward pass (None: the hard one), and dm/ds, from U (n,)."""
        raise TypeError(f"{type(self).__name__} has no surrogate")

    def train_step(self, batch: Batch) -> StepTrace:
        """One step: forward, backward to weights and masks, update of both."""
        if not self.searching:
            return self._fine_tune_step(batch)
        watch, meter = Stopwatch(self.backend), self.backend.meter
        meter.reset()
        batch = on_device(batch, self.backend, self.network.num_classes)
        s = self.keep_prob.copy()
        with watch("sample"):
            # The stream of Algorithm 1's first mask: with equal s, equal masks.
            uniform = rng_for(self.hyper.seed, "mask", "a", self.step).random(s.size)
            drawn, repaired = uniform < s, 0
            mask, slope = self.surrogate(uniform)
            if mask is None:
                used, repaired = repair(self.network, drawn, s)
                mask = used.astype(float)
            else:
                used = mask > 0.0
            network = gated(self.network, mask)
        self.optimizer.lr = self.lr()
        self.optimizer.zero_grad()
        with watch("forward_a"), meter.in_phase("forward_a"):
            tape = self.loss(network, batch)
            loss = self.check_loss(tape.item(), "L(m)")
        with watch("backward"), meter.in_phase("backward"):
            tape.backward()
        with watch("structure"):
            assert network.mask.grad is not None
            gradient = self.backend.to_numpy(network.mask.grad).astype(np.float64) * slope
            clipped = clip_gradients(self.optimizer, self.hyper.clip_norm, gradient)
            z, multiplier = self._update_keep_prob(gradient if clipped is None else clipped)
        with watch("update"):
            masked(self.network, used, self.optimizer).update()
        self.repaired += repaired
        trace = StepTrace(
            step=self.step,
            losses=(loss,),
            masks_drawn=drawn[None],
            masks_used=used[None],
            uniform=uniform,
            repaired=repaired,
            keep_prob_before=s,
            gradient=gradient,
            z=z,
            multiplier=multiplier,
            keep_prob=self.keep_prob.copy(),
            precondition_power=0.0,
            passes=(1, 1),
            seconds=watch.seconds,
        )
        trace.live_channels["a"] = self._live_counts(used)
        self.account(trace, ("forward_a",))
        self.step += 1
        return trace


class StraightThrough(ChainRule):
    """Stochastic binary masks, straight-through: m ~ Bern(s) forward, dm/ds := 1 backward.

    Exact in the mean where the loss is linear in m; biased otherwise: for a loss quadratic in m_c
    with coefficient a by a (2 s_c - 1).

    Source: Bengio, Leonard, Courville, "Estimating or Propagating Gradients Through Stochastic
    Neurons" (2013)
    Paper: Sec. 3, case (iv) with STE [eq1]
    Differs: the parameter is the probability itself; others put m ~ Bern(pi(s)).
    """

    name = "ste"

    def surrogate(self, uniform: np.ndarray) -> tuple[None, np.ndarray]:
        """Hard mask, slope 1."""
        return None, np.ones_like(uniform)


class GumbelSoftmax(ChainRule):
    """Gumbel-softmax masks: see relaxed_mask. Forward soft, or hard with the soft derivative.

    A soft mask leaves every channel in place: no pass could be cut, not even the forward one.
    Unbiased for the loss under soft masks, biased for the loss under 0/1 masks.

    Paper: Sec. 3, case (iv) with Gumbel-softmax, ref. [50] [eq1]
    Differs: the temperature is constant; ref. [50] divides by 1/T growing from 1 to 33.
    """

    name = "gumbel"

    def __init__(self, network: Network, hyper: Hyper, plan: Plan) -> None:
        if not 0.0 < hyper.gumbel_temperature <= 1.0:
            raise ValueError(
                f"--gumbel-temperature {hyper.gumbel_temperature}: it must be in (0, 1]"
            )
        if hyper.gumbel_forward not in GUMBEL_FORWARDS:
            raise ValueError(
                f"unknown forward mask '{hyper.gumbel_forward}' of --gumbel-forward: choose "
                f"{' or '.join(GUMBEL_FORWARDS)}"
            )
        super().__init__(network, hyper, plan)

    def surrogate(self, uniform: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """Relaxed mask and its slope."""
        mask, slope = relaxed_mask(self.keep_prob, uniform, self.hyper.gumbel_temperature)
        return (mask if self.hyper.gumbel_forward == "soft" else None), slope

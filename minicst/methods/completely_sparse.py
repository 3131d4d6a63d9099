"""Algorithm 1 of the paper: completely sparse training.

The numbers in the comments of `train_step` are the paper's line numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from minicst.autograd import Parameter, no_grad
from minicst.data import Batch
from minicst.methods.base import (
    Hyper,
    Method,
    Plan,
    _array,
    clip_gradients,
    evaluate,
    recalibrate,
)
from minicst.methods.trace import StepTrace, Stopwatch
from minicst.nn import Network
from minicst.optim import SGD, Adam, schedule
from minicst.randomness import rng_for
from minicst.sparse.estimators import coin_flip, pge, vr_pge, vr_pge_symmetric
from minicst.sparse.liveness import minimum_live, repair
from minicst.sparse.masked_form import MaskedNetwork, masked
from minicst.sparse.masks import sample_mask, top_k_mask
from minicst.sparse.projection import project_capped_simplex
from minicst.sparse.subnetwork import Subnetwork, cut

ESTIMATORS = ("vr-pge", "vr-pge-symmetric", "pge", "coin")
FINAL_MASKS = ("sample", "top-k", "best-of-10")


class CompletelySparse(Method):
    """Train weights and keep_prob by Algorithm 1.

    Paper: Algorithm 1 [alg1], Eq. (2) [eq2], Eqs. (5) and (12) [eq5], App. D [resample]
    Differs: masks act after batch norm, so that an absent channel is absent; empty groups keep
    their most probable channel; keep_prob's optimizer may be Adam, as in the paper's App. B. With
    resample_every = T, both losses and the update of keep_prob come at the first step of a block,
    steps 2 ... T train sub-network a alone (App. D leaves this open).

    Attributes:
        keep_prob: (n,) float64, the paper's s.
        budget: keep_rate * n, the paper's K.
    """

    name = "completely-sparse"

    def __init__(self, network: Network, hyper: Hyper, plan: Plan) -> None:
        super().__init__(network, hyper, plan)
        n = network.n_maskable
        self.budget = checked_budget(network, hyper.keep_rate)
        if hyper.estimator not in ESTIMATORS:
            raise ValueError(
                f"unknown estimator '{hyper.estimator}': choose one of {', '.join(ESTIMATORS)}"
            )
        if hyper.final_mask not in FINAL_MASKS:
            raise ValueError(
                f"unknown final mask '{hyper.final_mask}': choose one of {', '.join(FINAL_MASKS)}"
            )
        # 1: initialize w (the network's own), let s = rho 1
        self._s = Parameter(np.full(n, hyper.keep_rate, dtype=np.float64))
        self._s_optimizer: SGD | Adam
        if hyper.keep_prob_optimizer == "adam":
            self._s_optimizer = Adam({"s": self._s}, hyper.keep_prob_lr)
        elif hyper.keep_prob_optimizer == "sgd":
            self._s_optimizer = SGD({"s": self._s}, hyper.keep_prob_lr)
        else:
            raise ValueError(
                f"unknown optimizer of keep_prob '{hyper.keep_prob_optimizer}': choose adam or sgd"
            )
        # A floor must leave the budget feasible; rho = 1 means that nothing is ever masked.
        self.lower = min(hyper.keep_prob_floor, hyper.keep_rate / 2)
        self.upper = 1.0 - hyper.keep_prob_floor if hyper.keep_rate < 1.0 else 1.0
        self._mask: np.ndarray | None = None  # used mask of the current block or fine-tuning
        self._sub: Subnetwork | MaskedNetwork | None = None
        self.repaired = 0

    @property
    def keep_prob(self) -> np.ndarray:
        """(n,) float64, probability of each channel's mask being 1."""
        return self._s.data

    def train_step(self, batch: Batch) -> StepTrace:
        """One iteration of Algorithm 1, or of a later step of a block, or of fine-tuning."""
        if not self.searching:
            return self._fine_tune_step(batch)
        if self.step % self.hyper.resample_every != 0:
            return self._later_step(batch)
        hyper, meter = self.hyper, self.backend.meter
        watch = Stopwatch()
        meter.reset()
        s = self.keep_prob.copy()
        one_pass = hyper.estimator == "pge"

        # 4: the mini-batch B is given by the loop
        # 5: sample m(1), m(2) from p(m|s)
        with watch("sample"):
            drawn_a, used_a, fixed_a = self._draw("a")
            drawn_b, used_b, fixed_b = self._draw("b")
        with watch("cut"):
            self._close()
            sub_a = self._open(used_a, with_optimizer=True)
            sub_b = None if one_pass else self._open(used_b, with_optimizer=False)
        optimizer = sub_a.optimizer
        assert optimizer is not None
        optimizer.zero_grad()
        optimizer.lr = self.lr()

        # 6: L_B(w, m(1)) and L_B(w, m(2)), both at the same weights
        loss_b = None
        with watch("forward_b"), meter.in_phase("forward_b"):
            if sub_b is not None and hyper.backward_masks == 1:
                with no_grad():
                    loss_b = self.loss(sub_b, batch, track=False).item()
            elif sub_b is not None:
                tape_b = self.loss(sub_b, batch, track=False)
                loss_b = tape_b.item()
        with watch("forward_a"), meter.in_phase("forward_a"):
            tape = self.loss(sub_a, batch)
            loss_a = self.check_loss(tape.item(), "L(m)")
        if loss_b is not None:
            self.check_loss(loss_b, "L(m')")

        # 6: gradient of L_B(w, m(1)) through sub-network a alone
        updated: Subnetwork | MaskedNetwork = sub_a
        with watch("backward"), meter.in_phase("backward"):
            if sub_b is not None and hyper.backward_masks == 2:
                (tape * 0.5).backward()
                (tape_b * 0.5).backward()
                updated = self._union(sub_a, sub_b)
            else:
                tape.backward()

        # 6: s <- proj_S(z), z = s - eta (L(m(1)) - L(m(2))) H^alpha(s) (m(1) - s) / (s (1 - s))
        with watch("structure"):
            gradient = self._estimate(loss_a, loss_b, drawn_a, drawn_b, s)
            clipped = clip_gradients(updated.optimizer, hyper.clip_norm, gradient)  # type: ignore[arg-type]
            z, multiplier = self._update_keep_prob(gradient if clipped is None else clipped)

        # 6: w <- w - eta grad_w L_B(w, m(1)), live entries only
        with watch("update"):
            updated.optimizer.lr = optimizer.lr  # type: ignore[union-attr]
            updated.update()
        with watch("paste"):
            if isinstance(updated, Subnetwork) and updated is not sub_a:
                assert isinstance(sub_a, Subnetwork)
                assert isinstance(sub_b, Subnetwork)
                updated.restore_all_but([sub_a, sub_b])
                updated.paste()
                sub_a = self._open(used_a, with_optimizer=True)
            elif hyper.resample_every == 1:
                sub_a.paste()
        self._sub, self._mask = (sub_a, used_a) if hyper.resample_every > 1 else (None, None)

        self.repaired += fixed_a + (0 if one_pass else fixed_b)
        trace = StepTrace(
            step=self.step,
            loss_a=loss_a,
            loss_b=loss_b,
            mask_drawn_a=drawn_a,
            mask_drawn_b=None if one_pass else drawn_b,
            mask_used_a=used_a,
            mask_used_b=None if one_pass else used_b,
            repaired=fixed_a + (0 if one_pass else fixed_b),
            keep_prob_before=s,
            gradient=gradient,
            z=z,
            multiplier=multiplier,
            keep_prob=self.keep_prob.copy(),
            precondition_power=hyper.precondition_power,
            passes=(1 if one_pass else 2, hyper.backward_masks),
            seconds=watch.seconds,
        )
        trace.live_channels["a"] = self._live_counts(used_a)
        if not one_pass:
            trace.live_channels["b"] = self._live_counts(used_b)
        self.account(trace, ("forward_a",) if one_pass else ("forward_a", "forward_b"))
        self.step += 1
        return trace

    def end_epoch(self) -> None:
        """Paste the block's sub-network, and go on with it."""
        if self._sub is not None:
            self._sub.paste()

    def final_masks(self) -> dict[str, list[np.ndarray]]:
        """Masks to be scored when the search ends: sampled ones and the most probable channels.

        Top-K takes as many channels as masks have on average, sum(keep_prob), which may be fewer
        than the budget: channels beyond were decided against, and their weights are untrained.
        """
        expected = min(round(float(self.keep_prob.sum())), self.budget)
        samples = [
            repair(self.network, self._sample("final", i), self.keep_prob)[0]
            for i in range(self.hyper.n_final_samples)
        ]
        top_k = repair(self.network, top_k_mask(self.keep_prob, expected), self.keep_prob)[0]
        return {"samples": samples, "top_k": [top_k]}

    def candidates(self) -> dict[str, list[Network]]:
        """Small networks of final_masks()."""
        self.end_epoch()
        return {
            kind: [cut(self.network, mask).network for mask in masks]
            for kind, masks in self.final_masks().items()
        }

    def choose_final(self, batches: Iterable[Batch]) -> np.ndarray:
        """Return the final mask by the rule of the settings; test data plays no part.

        sample: one draw from p(m|s) (Algorithm 1, line 9). top-k: the most probable channels.
        best-of-10: the draw with the smallest loss on training batches (released code).
        """
        masks = self.final_masks()
        if self.hyper.final_mask == "top-k":
            return masks["top_k"][0]
        if self.hyper.final_mask == "sample":
            return masks["samples"][0]
        batches = list(batches)
        losses = []
        for mask in masks["samples"]:
            small = cut(self.network, mask).network
            recalibrate(small, batches)
            losses.append(evaluate(small, batches)[1])
        return masks["samples"][int(np.argmin(losses))]

    def start_fine_tuning(self, batches: Iterable[Batch]) -> None:
        """Fix the final mask; what follows trains its sub-network alone."""
        self._close()
        self._mask = self.choose_final(batches)
        self._sub = cut(self.network, self._mask, self.optimizer)

    def finalize(self, batches: Iterable[Batch]) -> Network:
        """Return the final small network, batch norm recalibrated on training batches."""
        # 9: a pruned network by a mask sampled from p(m|s)
        self.end_epoch()
        batches = list(batches)  # best-of-10 runs over them before the final network does
        fine_tuned = self._mask is not None and self.plan.search_steps < self.plan.total_steps
        mask = self._mask if fine_tuned else self.choose_final(batches)
        small = cut(self.network, mask).network
        recalibrate(small, batches)
        return small

    def state(self) -> dict[str, np.ndarray]:
        """Also keep_prob, its optimizer and the mask of the current block."""
        self.end_epoch()
        arrays = super().state()
        arrays["keep_prob"] = self.keep_prob
        for key, array in self._s_optimizer.state["s"].items():
            arrays[f"keep_prob_optimizer/{key}"] = array
        arrays["keep_prob_steps"] = np.array(self._s_optimizer.steps)
        arrays["repaired"] = np.array(self.repaired)
        arrays["mask"] = np.zeros(0, bool) if self._mask is None else self._mask
        return arrays

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from state()."""
        super().load_state(arrays)
        n = self.keep_prob.shape
        self._s.data[...] = _array(arrays, "keep_prob", n)
        for key, array in self._s_optimizer.state["s"].items():
            array[...] = _array(arrays, f"keep_prob_optimizer/{key}", n)
        self._s_optimizer.steps = int(_array(arrays, "keep_prob_steps", ()))
        self.repaired = int(_array(arrays, "repaired", ()))
        self._sub = self._mask = None
        if arrays["mask"].size:
            self._mask = _array(arrays, "mask", n)
            self._sub = self._open(self._mask, with_optimizer=True)

    # The parts of a step.

    def _sample(self, which: str, number: int) -> np.ndarray:
        return sample_mask(self.keep_prob, rng_for(self.hyper.seed, "mask", which, number))

    def _draw(self, which: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Draw a mask, keyed by seed and step: (as drawn, as used, channels repaired)."""
        drawn = self._sample(which, self.step)
        used, repaired = repair(self.network, drawn, self.keep_prob)
        return drawn, used, repaired

    def _open(self, mask: np.ndarray, with_optimizer: bool) -> Subnetwork | MaskedNetwork:
        optimizer = self.optimizer if with_optimizer else None
        if self.hyper.mask_position == "filter":
            return masked(self.network, mask, optimizer, "filter")
        return cut(self.network, mask, optimizer)

    def _close(self) -> None:
        """Paste and leave the sub-network of the last block."""
        self.end_epoch()
        self._sub = self._mask = None

    def _union(
        self, sub_a: Subnetwork | MaskedNetwork, sub_b: Subnetwork | MaskedNetwork
    ) -> Subnetwork | MaskedNetwork:
        """Both masks were back-propagated: return a sub-network that contains both."""
        if isinstance(sub_a, MaskedNetwork) or isinstance(sub_b, MaskedNetwork):
            return sub_a  # both passes left their gradients in the full network
        sub_a.paste()  # batch norm's running statistics come from pass a
        union = cut(self.network, sub_a.mask | sub_b.mask, self.optimizer)
        for sub in (sub_a, sub_b):
            sub.add_gradients_to(union)
        return union

    def _estimate(
        self,
        loss_a: float,
        loss_b: float | None,
        mask_a: np.ndarray,
        mask_b: np.ndarray,
        s: np.ndarray,
    ) -> np.ndarray:
        """Estimate H^alpha grad Phi(s) from two numbers and the drawn masks."""
        alpha = self.hyper.precondition_power
        if loss_b is None:
            return pge(loss_a, mask_a, s, alpha)
        if self.hyper.estimator == "vr-pge-symmetric":
            return vr_pge_symmetric(loss_a, loss_b, mask_a, mask_b, s, alpha)
        if self.hyper.estimator == "coin":
            side = rng_for(self.hyper.seed, "coin", self.step).integers(2)
            return coin_flip(loss_a, loss_b, mask_a, s, 2.0 * float(side) - 1.0, alpha)
        return vr_pge(loss_a, loss_b, mask_a, s, alpha)

    def _update_keep_prob(self, gradient: np.ndarray) -> tuple[np.ndarray, float]:
        """Step and project; return z and the projection's multiplier."""
        progress = self.step / max(self.plan.search_steps, 1)
        factor = schedule(self.hyper.keep_prob_schedule, progress)
        self._s_optimizer.lr = self.hyper.keep_prob_lr * factor
        self._s.grad = gradient
        self._s_optimizer.step()
        z = self._s.data.copy()
        if self.hyper.keep_rate == 1.0:
            self._s.data[...] = 1.0
            return z, 0.0
        projected, multiplier = project_capped_simplex(z, self.budget, self.lower, self.upper)
        self._s.data[...] = projected
        return z, multiplier

    def _later_step(self, batch: Batch) -> StepTrace:
        """Steps 2 ... T of a block: sub-network a alone."""
        assert self._sub is not None
        if isinstance(self._sub, MaskedNetwork):
            raise ValueError("resample_every > 1 needs mask position after-norm")
        return self._sub_step(batch)

    def _fine_tune_step(self, batch: Batch) -> StepTrace:
        if self._sub is None:
            raise ValueError("start_fine_tuning(batches) comes before the first fine-tuning step")
        return self._sub_step(batch)

    def _sub_step(self, batch: Batch) -> StepTrace:
        assert isinstance(self._sub, Subnetwork)
        assert self._sub.optimizer is not None
        trace = self.plain_step(self._sub.network, self._sub.optimizer, batch)
        trace.mask_used_a = self._mask
        trace.keep_prob = trace.keep_prob_before = self.keep_prob.copy()
        trace.live_channels["a"] = self._live_counts(self._sub.mask)
        return trace

    def _live_counts(self, mask: np.ndarray) -> dict[str, int]:
        return {group: int(mask[at].sum()) for group, at in self.network.groups.items()}


def checked_budget(network: Network, keep_rate: float) -> float:
    """Return the budget K = rho n.

    Raises:
        ValueError: if the keep rate is not in (0, 1], nothing is maskable, or the budget is smaller
            than the number of groups that may not be empty.
    """
    n = network.n_maskable
    if not 0.0 < keep_rate <= 1.0:
        raise ValueError(
            f"keep rate {keep_rate}: it is the share of channels that are kept, in (0, 1]"
        )
    if n == 0:
        raise ValueError(f"network {network.name} has no maskable channels: use --method dense")
    needed = minimum_live(network)
    budget = keep_rate * n
    if budget < needed:
        raise ValueError(
            f"keep rate {keep_rate} of {n} channels is a budget of {budget:.3g} channels, but "
            f"{needed} groups of {network.name} may not be empty: the keep rate must be at least "
            f"{needed / n:.4f}, or the network wider"
        )
    return budget

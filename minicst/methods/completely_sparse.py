"""Algorithm 1 of the paper: completely sparse training.

The numbers in the comments of `train_step` are the paper's line numbers.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from minicst.autograd import Parameter, no_grad
from minicst.backend import Backend, cpu_backend
from minicst.data import Batch
from minicst.methods.base import (
    Hyper,
    Method,
    Plan,
    _array,
    clip_gradients,
    evaluate_all,
    on_device,
    recalibrate,
    recalibrate_all,
)
from minicst.methods.full_model import FullModel
from minicst.methods.trace import StepTrace, Stopwatch
from minicst.nn import Network
from minicst.optim import SGD, Adam, schedule
from minicst.randomness import rng_for
from minicst.sparse.estimators import moving_average
from minicst.sparse.expected import linear_macs_cost
from minicst.sparse.liveness import minimum_live, repair
from minicst.sparse.masked_form import MaskedNetwork, masked
from minicst.sparse.masks import sample_mask, top_k_mask
from minicst.sparse.projection import project_capped_simplex
from minicst.sparse.rules import RULES, Draws, draw_masks
from minicst.sparse.subnetwork import Subnetwork, cut

LETTERS = string.ascii_lowercase  # of the forward passes: L(m) is pass a, L(m') pass b, ...
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
        weights: (n,) cost of each channel, mean 1, where the budget is in MACs; else None.
        rule: of the estimator.
    """

    name = "completely-sparse"

    def __init__(
        self, network: Network, hyper: Hyper, plan: Plan, device: Backend | None = None
    ) -> None:
        super().__init__(network, hyper, plan)
        self.full = FullModel(network, self.optimizer, device)
        if self.full.elsewhere and (hyper.mask_position == "filter" or hyper.backward_masks > 1):
            raise ValueError(
                "a full model that isn't on the device is cut by one mask at a time: it takes "
                "--mask-position after-norm and --backward-masks 1"
            )
        n = network.n_maskable
        self.budget = checked_budget(network, hyper.keep_rate)
        if hyper.estimator not in RULES:
            raise ValueError(
                f"unknown estimator '{hyper.estimator}': choose one of {', '.join(RULES)}"
            )
        self.rule = RULES[hyper.estimator]
        self.weights = None
        self._macs_cost: tuple[np.ndarray, float] | None = None
        if hyper.budget_in == "macs":
            self._macs_cost = linear_macs_cost(network, plan.input_shape)
            # Mean 1: the budget stays keep_rate * n, in channels of average cost.
            self.weights = self._macs_cost[0] / self._macs_cost[0].mean()
        elif hyper.budget_in != "channels":
            raise ValueError(f"unknown budget '{hyper.budget_in}': choose channels or macs")
        if hyper.final_mask not in FINAL_MASKS:
            raise ValueError(
                f"unknown final mask '{hyper.final_mask}': choose one of {', '.join(FINAL_MASKS)}"
            )
        # 1: initialize w (the network's own), let s = rho 1
        # On the host, wherever the network is: masks are drawn there.
        s = np.full(n, hyper.keep_rate, dtype=np.float64)
        self._s = Parameter(s, backend=cpu_backend())
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
        self._written = True  # whether the full network has what _sub learned
        self._baseline: float | None = None
        self.repaired = 0

    @property
    def backend(self) -> Backend:
        """Where sub-networks train."""
        return self.full.device if hasattr(self, "full") else self.network.backend

    @property
    def keep_prob(self) -> np.ndarray:
        """(n,) float64, probability of each channel's mask being 1."""
        return self._s.data

    def macs_bound(self) -> float | None:
        """MACs of a forward pass that a budget in macs allows now: constant + sum c_j s_j; or None.

        Each filter is charged for dense input, so the expected MACs, bilinear in s, are fewer.
        """
        if self._macs_cost is None:
            return None
        costs, constant = self._macs_cost
        return constant + float(costs @ self.keep_prob)

    def train_step(self, batch: Batch) -> StepTrace:
        """One iteration of Algorithm 1, or of a later step of a block, or of fine-tuning."""
        if not self.searching:
            return self._fine_tune_step(batch)
        if self.step % self.hyper.resample_every != 0:
            return self._later_step(batch)
        hyper, meter = self.hyper, self.backend.meter
        watch = Stopwatch(self.backend)
        meter.reset()
        batch = on_device(batch, self.backend, self.network.num_classes)
        s = self.keep_prob.copy()

        # 4: the mini-batch B is given by the loop
        # 5: sample m(1), m(2) from p(m|s); other estimators take one mask, or more
        with watch("sample"):
            drawn, uniform, used, repaired = self._draw()
        with watch("cut"):
            subs = self._exchange(used)
        sub_a = subs[0]
        optimizer = sub_a.optimizer
        assert optimizer is not None
        optimizer.zero_grad()
        optimizer.lr = self.lr()

        # 6: L_B(w, m(1)) and L_B(w, m(2)), all at the same weights
        losses, tapes = self._forward_passes(subs, batch, watch)

        # 6: gradient of L_B(w, m(1)) through sub-network a alone
        updated: Subnetwork | MaskedNetwork = sub_a
        with watch("backward"), meter.in_phase("backward"):
            for tape in tapes:
                (tape * (1.0 / len(tapes)) if len(tapes) > 1 else tape).backward()
            if len(tapes) > 1:
                updated = self._union(sub_a, subs[1])

        # 6: s <- proj_S(z), z = s - eta (L(m(1)) - L(m(2))) H^alpha(s) (m(1) - s) / (s (1 - s))
        with watch("structure"):
            draws = self._draws(losses, drawn, uniform)
            gradient = self.rule.estimate(draws, s, hyper.precondition_power)
            if self.rule.needs_average:
                self._baseline = moving_average(self._baseline, losses[0], hyper.baseline_decay)
            clipped = clip_gradients(updated.optimizer, hyper.clip_norm, gradient)  # type: ignore[arg-type]
            z, multiplier = self._update_keep_prob(gradient if clipped is None else clipped)

        # 6: w <- w - eta grad_w L_B(w, m(1)), live entries only
        holds = hyper.resample_every > 1 or self.full.elsewhere
        with watch("update"):
            updated.optimizer.lr = optimizer.lr  # type: ignore[union-attr]
            updated.update()
        with watch("paste"):
            if isinstance(updated, Subnetwork) and updated is not sub_a:
                assert isinstance(sub_a, Subnetwork)
                assert isinstance(subs[1], Subnetwork)
                updated.restore_all_but([sub_a, subs[1]])
                updated.paste()
                sub_a = self._open(used[0], with_optimizer=True)
            elif not holds:
                sub_a.paste()
        self._sub, self._mask = (sub_a, used[0]) if holds else (None, None)
        self._written = not holds or updated is not sub_a
        if self.full.elsewhere:
            with watch("gather"):
                self._gather_ahead()

        self.repaired += repaired
        trace = StepTrace(
            step=self.step,
            losses=losses,
            masks_drawn=drawn,
            masks_used=used,
            uniform=uniform,
            baseline=draws.baseline,
            coin=None if draws.coin is None else float(draws.coin),
            repaired=repaired,
            keep_prob_before=s,
            gradient=gradient,
            z=z,
            multiplier=multiplier,
            keep_prob=self.keep_prob.copy(),
            precondition_power=hyper.precondition_power,
            passes=(len(used), len(tapes)),
            seconds=watch.seconds,
        )
        letters = LETTERS[: len(used)]
        for letter, mask in zip(letters, used, strict=True):
            trace.live_channels[letter] = self._live_counts(mask)
        self.account(trace, tuple(f"forward_{letter}" for letter in letters))
        self.step += 1
        return trace

    def end_epoch(self) -> None:
        """Paste the block's sub-network, and go on with it."""
        if self._sub is not None and not self._written:
            self._written = True
            if isinstance(self._sub, Subnetwork):
                self.full.write_back(self._sub)
            else:
                self._sub.paste()
        self.full.finish()

    def final_masks(self) -> dict[str, list[np.ndarray]]:
        """Masks to be scored when the search ends: sampled ones and the most probable channels.

        Top-K takes as many channels as masks have on average, sum(keep_prob), which may be fewer
        than the budget: channels beyond were decided against, and their weights are untrained.
        """
        expected: float = round(float(self.keep_prob.sum()))
        if self.weights is None:
            expected = min(expected, self.budget)
        samples = [
            repair(self.network, self._sample("final", i), self.keep_prob)[0]
            for i in range(self.hyper.n_final_samples)
        ]
        top_k = repair(self.network, top_k_mask(self.keep_prob, expected), self.keep_prob)[0]
        return {"samples": samples, "top_k": [top_k]}

    def candidates(self) -> Iterator[list[tuple[str, Network]]]:
        """Small networks of final_masks(): all at once, or one by one where memory is short."""
        self.end_epoch()
        kinds = [(kind, mask) for kind, masks in self.final_masks().items() for mask in masks]
        size = 1 if self.full.elsewhere else len(kinds)
        for start in range(0, len(kinds), size):
            yield [
                (kind, self.full.open(mask, with_optimizer=False).network)
                for kind, mask in kinds[start : start + size]
            ]

    def choose_final(self, batches: Iterable[Batch]) -> np.ndarray:
        """Return the final mask by the rule of the settings; test data plays no part.

        sample: one draw from p(m|s) (Algorithm 1, line 9). top-k: the most probable channels.
        best-of-10: the draw with the smallest loss on training batches (the released code's has
            the best training accuracy).
        """
        masks = self.final_masks()
        if self.hyper.final_mask == "top-k":
            return masks["top_k"][0]
        if self.hyper.final_mask == "sample":
            return masks["samples"][0]
        if isinstance(batches, Iterator):
            batches = list(batches)  # they are run through twice
        samples, losses = masks["samples"], []
        size = 1 if self.full.elsewhere else len(samples)
        for start in range(0, len(samples), size):
            group = samples[start : start + size]
            drawn = [self.full.open(mask, with_optimizer=False).network for mask in group]
            recalibrate_all(drawn, batches)
            losses += [loss for _, loss in evaluate_all(drawn, batches)]
        return masks["samples"][int(np.argmin(losses))]

    def start_fine_tuning(self, batches: Iterable[Batch]) -> None:
        """Fix the final mask; what follows trains its sub-network alone."""
        self._close()
        self._mask = self.choose_final(batches)
        self._sub = self.full.open(self._mask, with_optimizer=True)

    def finalize(self, batches: Iterable[Batch]) -> Network:
        """Return the final small network, batch norm recalibrated on training batches."""
        # 9: a pruned network by a mask sampled from p(m|s)
        self.end_epoch()
        if isinstance(batches, Iterator):
            batches = list(batches)  # best-of-10 runs over them before the final network does
        fine_tuned = self._mask is not None and self.plan.search_steps < self.plan.total_steps
        mask = self._mask if fine_tuned else self.choose_final(batches)
        assert mask is not None
        small = self.full.open(mask, with_optimizer=False).network
        recalibrate(small, batches)
        return small

    def state(self) -> dict[str, np.ndarray]:
        """Also keep_prob, its optimizer and the mask of the current block."""
        self.end_epoch()
        return super().state()

    def position(self) -> dict[str, np.ndarray]:
        """All of state() but what the full network and its optimizer hold; copies."""
        arrays = super().position()
        arrays["keep_prob"] = self.keep_prob
        for key, array in self._s_optimizer.state["s"].items():
            arrays[f"keep_prob_optimizer/{key}"] = array
        arrays["keep_prob_steps"] = np.array(self._s_optimizer.steps)
        arrays["repaired"] = np.array(self.repaired)
        arrays["baseline"] = np.array([] if self._baseline is None else [self._baseline])
        arrays["mask"] = np.zeros(0, bool) if self._mask is None else self._mask
        return {name: array.copy() for name, array in arrays.items()}

    def load_position(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from position()."""
        super().load_position(arrays)
        n = self.keep_prob.shape
        self._s.data[...] = _array(arrays, "keep_prob", n)
        for key, array in self._s_optimizer.state["s"].items():
            array[...] = _array(arrays, f"keep_prob_optimizer/{key}", n)
        self._s_optimizer.steps = int(_array(arrays, "keep_prob_steps", ()))
        self.repaired = int(_array(arrays, "repaired", ()))
        self._baseline = next(iter(arrays["baseline"].tolist()), None)
        self._sub = self._mask = None
        if arrays["mask"].size:
            self._mask = _array(arrays, "mask", n)
            self._sub = self._open(self._mask, with_optimizer=True)
        self._written = True

    # The parts of a step.

    def _sample(self, which: str, number: int) -> np.ndarray:
        return sample_mask(self.keep_prob, rng_for(self.hyper.seed, "mask", which, number))

    def _draw(
        self, step: int | None = None
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, int]:
        """Draw a step's masks, keyed by seed and step; None: of this step.

        Returns:
            Masks as drawn (k, n), U of an antithetic pair, masks as used, channels repaired.
        """
        letters = LETTERS[: self.rule.masks_per_step(self.hyper.n_masks)]
        step = self.step if step is None else step
        rngs = [rng_for(self.hyper.seed, "mask", letter, step) for letter in letters]
        drawn, uniform = draw_masks(self.rule, self.keep_prob, rngs)
        used, repaired = zip(
            *(repair(self.network, mask, self.keep_prob) for mask in drawn), strict=True
        )
        return drawn, uniform, np.stack(used), sum(repaired)

    def _forward_passes(
        self, subs: list[Subnetwork | MaskedNetwork], batch: Batch, watch: Stopwatch
    ) -> tuple[tuple[float, ...], list[Any]]:
        """Run the forward passes, that of m(1) last; only what is back-propagated gets a tape.

        Returns:
            The losses in the masks' order, and the tapes of the first one or two.
        """
        meter = self.backend.meter
        n_tapes = min(self.hyper.backward_masks, len(subs))
        tapes: dict[int, Any] = {}
        losses = [0.0] * len(subs)
        for i in reversed(range(len(subs))):
            phase = f"forward_{LETTERS[i]}"
            with watch(phase), meter.in_phase(phase):
                if i < n_tapes:
                    tapes[i] = self.loss(subs[i], batch, track=i == 0)
                    losses[i] = tapes[i].item()
                else:
                    with no_grad():
                        losses[i] = self.loss(subs.pop(), batch, track=False).item()
        for i, loss in enumerate(losses):
            self.check_loss(loss, "L(m)" if i == 0 else "L(m')")
        return tuple(losses), [tapes[i] for i in range(n_tapes)]

    def _open(self, mask: np.ndarray, with_optimizer: bool) -> Subnetwork | MaskedNetwork:
        optimizer = self.optimizer if with_optimizer else None
        if self.hyper.mask_position == "filter":
            return masked(self.network, mask, optimizer, "filter")
        return self.full.open(mask, with_optimizer)

    def _exchange(self, used: np.ndarray) -> list[Subnetwork | MaskedNetwork]:
        """Close the last block and open the sub-networks of this step."""
        if self.hyper.mask_position == "filter":
            self._close()
            return [self._open(mask, with_optimizer=i == 0) for i, mask in enumerate(used)]
        held, written = self._sub, self._written
        assert not isinstance(held, MaskedNetwork)
        self._sub, self._written = None, True
        return list(self.full.exchange(held, used, written))

    def _gather_ahead(self) -> None:
        """Let the next block's sub-networks come."""
        every, following = self.hyper.resample_every, self.step + self.hyper.resample_every
        if every > 1 and following < self.plan.search_steps:
            self.full.ahead(self._draw(following)[2])

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

    def _draws(
        self, losses: tuple[float, ...], masks: np.ndarray, uniform: np.ndarray | None
    ) -> Draws:
        """All that the estimator sees: numbers, and masks as drawn."""
        coin = None
        if not self.rule.informed:
            coin = 2.0 * float(rng_for(self.hyper.seed, "coin", self.step).integers(2)) - 1.0
        return Draws(np.array(losses), masks, uniform, self._baseline, coin)

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
        projected, multiplier = project_capped_simplex(
            z, self.budget, self.lower, self.upper, self.weights
        )
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
        self._written = False
        trace = self.plain_step(self._sub.network, self._sub.optimizer, batch)
        trace.masks_used = None if self._mask is None else self._mask[None]
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
    n, what = network.n_maskable, network.maskable
    if not 0.0 < keep_rate <= 1.0:
        raise ValueError(
            f"keep rate {keep_rate}: it is the share of {what} that are kept, in (0, 1]"
        )
    if n == 0:
        raise ValueError(f"network {network.name} has no maskable channels: use --method dense")
    needed = minimum_live(network)
    budget = keep_rate * n
    if budget < needed:
        raise ValueError(
            f"keep rate {keep_rate} of {n} {what} is a budget of {budget:.3g} {what}, but "
            f"{needed} groups of {network.name} may not be empty: the keep rate must be at least "
            f"{needed / n:.4f}, or the network wider"
        )
    return budget

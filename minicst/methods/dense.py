"""Dense training, and the two controls that train one fixed small network."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from minicst.data import Batch
from minicst.methods.base import Hyper, Method, Plan, recalibrate
from minicst.methods.completely_sparse import checked_budget
from minicst.methods.trace import StepTrace
from minicst.models import build
from minicst.nn import Network, clone
from minicst.randomness import rng_for
from minicst.sparse.accounting import count_macs
from minicst.sparse.expected import expected_macs, keep_rate_for
from minicst.sparse.liveness import repair
from minicst.sparse.subnetwork import cut


class Dense(Method):
    """Plain training of the whole network: one forward, one backward pass a step.

    Paper: App. C.1, the cost fD + 2 fD [cost-dense]
    """

    name = "dense"

    def train_step(self, batch: Batch) -> StepTrace:
        """One step."""
        return self.plain_step(self.network, self.optimizer, batch)

    def finalize(self, batches: Iterable[Batch]) -> Network:
        """Return a recalibrated copy."""
        small = clone(self.network)
        recalibrate(small, batches)
        return small


class FixedSubnetwork(Dense):
    """Base of the controls: the full network only says what dense would cost."""

    def __init__(self, full: Network, small: Network, hyper: Hyper, plan: Plan) -> None:
        super().__init__(small, hyper, plan)
        self.dense_count = count_macs(full, plan.input_shape)
        self.dense_step_macs = self.dense_count.executed(plan.batch_size, backward=True)


class FixedMask(FixedSubnetwork):
    """Control: one random mask, drawn before training and kept.

    Of the masks drawn, the one whose MACs come closest to the target is taken.

    Args:
        network: the full network.
        hyper: keep_rate sets the target if none is given.
        plan: see Plan.
        target_macs: MACs of a forward pass to come close to.
    """

    name = "fixed-mask"
    tries = 64

    def __init__(
        self, network: Network, hyper: Hyper, plan: Plan, target_macs: float | None = None
    ) -> None:
        checked_budget(network, hyper.keep_rate)
        n = network.n_maskable
        uniform = np.full(n, hyper.keep_rate)
        target = target_macs or expected_macs(network, plan.input_shape, uniform)
        dense = count_macs(network, plan.input_shape).macs
        if network.weight_units():
            share = min(target / dense, 1.0)
            rate = max(keep_rate_for(network, plan.input_shape, share), 1.0 / n)
        else:
            # MACs grow with the square of the rate, so this is where a mask of that size is likely.
            rate = min(1.0, max((target / dense) ** 0.5, 1.0 / n))
        masks = [
            repair(network, rng_for(hyper.seed, "fixed-mask", i).random(n) < rate, uniform)[0]
            for i in range(self.tries)
        ]
        macs = [count_macs(network, plan.input_shape, mask).macs for mask in masks]
        self.mask = masks[int(np.argmin(np.abs(np.array(macs) - target)))]
        super().__init__(network, cut(network, self.mask).network, hyper, plan)


class Narrow(FixedSubnetwork):
    """Control: the same architecture, uniformly narrower.

    Args:
        network: the full network.
        hyper: keep_rate sets the target if none is given.
        plan: see Plan.
        options: arguments of models.build for the full network.
        target_macs: MACs of a forward pass to come close to.
    """

    name = "narrow"

    def __init__(
        self,
        network: Network,
        hyper: Hyper,
        plan: Plan,
        options: dict,
        target_macs: float | None = None,
    ) -> None:
        checked_budget(network, hyper.keep_rate)
        uniform = np.full(network.n_maskable, hyper.keep_rate)
        target = target_macs or expected_macs(network, plan.input_shape, uniform)
        low, high = 1e-3, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            small = build(**options | {"width": options["width"] * middle})
            if count_macs(small, plan.input_shape).macs < target:
                low = middle
            else:
                high = middle
        choices = [build(**options | {"width": options["width"] * w}) for w in (low, high)]
        best = min(choices, key=lambda net: abs(count_macs(net, plan.input_shape).macs - target))
        super().__init__(network, best, hyper, plan)

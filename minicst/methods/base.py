"""What every training method shares: the protocol of the one loop, and a plain training step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import minicst.functional as F
from minicst.autograd import Tensor, no_grad
from minicst.backend import Backend
from minicst.data import Batch
from minicst.methods.trace import StepTrace, Stopwatch
from minicst.nn import Network
from minicst.optim import SGD, Adam, Optimizer, schedule
from minicst.sparse.accounting import count_macs


class TrainingError(ValueError):
    """Training can't go on; the message says why and what to change."""


@dataclass(frozen=True)
class Hyper:
    """Numbers that a method needs; the command line's settings name and explain them all."""

    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    keep_rate: float = 0.5
    budget_in: str = "channels"
    estimator: str = "vr-pge"
    n_masks: int = 4
    baseline_decay: float = 0.9
    precondition_power: float = 0.5
    keep_prob_optimizer: str = "adam"
    keep_prob_lr: float = 12e-3  # paper, App. B
    keep_prob_schedule: str = "cosine"
    keep_prob_floor: float = 0.0
    resample_every: int = 1
    backward_masks: int = 1
    mask_position: str = "after-norm"
    gumbel_temperature: float = 2 / 3  # Maddison et al. 2017, for binary concrete variables
    gumbel_forward: str = "soft"
    final_mask: str = "sample"
    n_final_samples: int = 10
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """How many steps there will be.

    Attributes:
        total_steps: of the whole run.
        search_steps: with changing masks; the rest trains the final sub-network (fine-tuning).
        batch_size: images a step.
        input_shape: (h, w, c) of an image.
    """

    total_steps: int
    search_steps: int
    batch_size: int
    input_shape: tuple[int, int, int]


def build_optimizer(kind: str, parameters: Any, hyper: Hyper) -> Optimizer:
    """Return the weights' optimizer.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind == "sgd":
        return SGD(parameters, hyper.lr, hyper.momentum, hyper.weight_decay, hyper.nesterov)
    if kind == "adam":
        return Adam(parameters, hyper.lr, weight_decay=hyper.weight_decay)
    raise ValueError(f"unknown optimizer '{kind}': choose sgd or adam")


class Method:
    """Base of all training methods: the one loop needs no more than this.

        train_step(batch) -> StepTrace      end_epoch()      finalize(batches) -> small network

    Args:
        network: the full network; it is trained in place.
        hyper: see Hyper.
        plan: see Plan.

    Attributes:
        step: number of steps taken.
    """

    name = ""

    def __init__(self, network: Network, hyper: Hyper, plan: Plan) -> None:
        self.network, self.hyper, self.plan = network, hyper, plan
        self.step = 0
        self.optimizer = build_optimizer(hyper.optimizer, network, hyper)
        dense = count_macs(network, plan.input_shape)
        self.dense_count = dense
        self.dense_step_macs = dense.executed(plan.batch_size, backward=True)

    @property
    def backend(self) -> Backend:
        """Where the network lives."""
        return self.network.backend

    @property
    def searching(self) -> bool:
        """Whether masks still change."""
        return self.step < self.plan.search_steps

    def lr(self) -> float:
        """Learning rate of the weights at this step."""
        progress = self.step / max(self.plan.total_steps, 1)
        return self.hyper.lr * schedule(self.hyper.schedule, progress, self.hyper.warmup)

    def train_step(self, batch: Batch) -> StepTrace:
        """Train on one mini-batch."""
        raise TypeError(f"{type(self).__name__} has no train_step")

    def end_epoch(self) -> None:
        """Bring the full network up to date (paste), so that it can be saved."""

    def candidates(self) -> Iterator[list[tuple[str, Network]]]:
        """Yield (kind, small network) to be scored when the search ends; none for most methods.

        They come in groups that may be held at once.
        """
        yield from ()

    def finalize(self, batches: Iterable[Batch]) -> Network:
        """Return the final small network, batch norm recalibrated on training batches."""
        raise TypeError(f"{type(self).__name__} has no finalize")

    def state(self) -> dict[str, np.ndarray]:
        """All that a checkpoint needs besides the settings, as arrays by name."""
        to_numpy = self.network.backend.to_numpy
        arrays = {f"network/{name}": a for name, a in self.network.host_state().items()}
        for name, state in self.optimizer.state.items():
            arrays |= {f"optimizer/{name}/{key}": to_numpy(a) for key, a in state.items()}
        return arrays | self.position()

    def position(self) -> dict[str, np.ndarray]:
        """All of state() but what the network and its optimizer hold."""
        return {
            "step": np.array(self.step),
            "optimizer_steps": np.array(self.optimizer.steps),
        }

    def load_state(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from state().

        Raises:
            ValueError: if an array is missing or has another shape.
        """
        prefix = "network/"
        self.network.load_state(
            {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}
        )
        asarray = self.network.backend.asarray
        for name, state in self.optimizer.state.items():
            for key, array in state.items():
                array[...] = asarray(_array(arrays, f"optimizer/{name}/{key}", array.shape))
        self.load_position(arrays)

    def load_position(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from position(); network and optimizer hold theirs already.

        Raises:
            ValueError: if an array is missing or has another shape.
        """
        self.step = int(_array(arrays, "step", ()))
        self.optimizer.steps = int(_array(arrays, "optimizer_steps", ()))

    # What the methods are made of.

    def loss(self, network: Any, batch: Batch, track: bool = True) -> Any:
        """Cross-entropy of a training-mode forward pass, a scalar tensor on the tape."""
        logits = network(batch.images, training=True, track=track, step=self.step)
        return F.cross_entropy(logits, batch.labels, self.hyper.label_smoothing)

    def check_loss(self, loss: float, what: str) -> float:
        """Return the loss.

        Raises:
            TrainingError: if it isn't finite.
        """
        if not math.isfinite(loss):
            raise TrainingError(
                f"{what} is {loss} at step {self.step}: training diverged; try a smaller --lr "
                f"(now {self.hyper.lr}), --warmup 0.1 or --clip-norm 3"
            )
        return loss

    def plain_step(self, small: Network, optimizer: Optimizer, batch: Batch) -> StepTrace:
        """Train a fixed network: one forward, one backward pass, one update."""
        watch, meter = Stopwatch(self.backend), self.backend.meter
        meter.reset()
        batch = on_device(batch, self.backend, self.network.num_classes)
        optimizer.lr = self.lr()
        optimizer.zero_grad()
        with watch("forward_a"), meter.in_phase("forward_a"):
            loss = self.loss(small, batch)
        value = self.check_loss(loss.item(), "the loss")
        with watch("backward"), meter.in_phase("backward"):
            loss.backward()
        with watch("update"):
            clip_gradients(optimizer, self.hyper.clip_norm)
            optimizer.step()
        trace = StepTrace(self.step, (value,), passes=(1, 1), seconds=watch.seconds)
        self.account(trace, ("forward_a",))
        self.step += 1
        return trace

    def account(self, trace: StepTrace, forwards: tuple[str, ...]) -> None:
        """Move the meter's counts into the trace, beside those of a dense step."""
        meter = self.backend.meter
        phases = dict.fromkeys(phase for phase, _, _ in meter.macs)
        trace.macs = {phase: meter.by_layer(phase) for phase in phases}
        trace.macs_dense = self.dense_step_macs
        trace.executed_bytes = sum(meter.bytes.values())
        dense = self.dense_count.macs * self.plan.batch_size
        ran = [meter.total(phase, "forward") for phase in forwards]
        trace.cost_ratio = sum(ran) / (len(ran) * dense)


def on_device(batch: Batch, backend: Backend, classes: int) -> Batch:
    """Return the batch as tensor and checked labels on the device, for all passes of a step.

    Args:
        batch: on the host; one that is there already is returned as it is.
        backend: of the network.
        classes: number of logits.
    """
    if isinstance(batch.images, Tensor):
        return batch
    images: Any = Tensor(batch.images, backend=backend)
    labels: Any = F.check_labels(batch.labels, classes, backend)
    return Batch(batch.index, images, labels)


def clip_gradients(
    optimizer: Optimizer, max_norm: float, extra: np.ndarray | None = None
) -> np.ndarray | None:
    """Scale all gradients (and `extra`, jointly) so that their common norm is at most max_norm.

    0 switches it off. The released code clips weights and keep_prob jointly at 3.
    """
    if max_norm <= 0.0:
        return extra
    grads = {name: p.grad for name, p in optimizer.parameters.items() if p.grad is not None}
    backend = next(iter(optimizer.parameters.values())).backend
    squares = [(grad**2).sum() for grad in grads.values()]  # read from the device all at once
    square = sum(backend.to_numpy(backend.xp.stack(squares)).tolist()) if squares else 0.0
    if extra is not None:
        square += float((extra**2).sum())
    factor = max_norm / (math.sqrt(square) + 1e-6)
    if factor >= 1.0:
        return extra
    for parameter in optimizer.parameters.values():
        if parameter.grad is not None:
            parameter.grad = parameter.grad * factor
    return None if extra is None else extra * factor


def recalibrate(network: Network, batches: Iterable[Batch]) -> None:
    """Set batch norm's running statistics to the average over these training batches.

    A sub-network's statistics differ from those gathered over many masks. Forward passes only;
    the meter books them under "recalibrate".
    """
    recalibrate_all([network], batches)


def recalibrate_all(networks: Sequence[Network], batches: Iterable[Batch]) -> None:
    """Recalibrate each network; the batches are run through once."""
    norms = [norm for network in networks for norm in network.norms().values()]
    momenta = [norm.momentum for norm in norms]
    meter = networks[0].backend.meter
    try:
        with no_grad(), meter.in_phase("recalibrate"):
            for i, batch in enumerate(batches):
                for norm in norms:
                    norm.momentum = 1.0 / (i + 1)  # running mean of the batches so far
                images = Tensor(batch.images, backend=networks[0].backend)
                for network in networks:
                    network(images, training=True, step=i)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def evaluate(network: Network, batches: Iterable[Batch]) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy in eval mode; booked under "evaluate"."""
    return evaluate_all([network], batches)[0]


def evaluate_all(
    networks: Sequence[Network], batches: Iterable[Batch]
) -> list[tuple[float, float]]:
    """Return accuracy and mean cross-entropy of each network; the batches are run through once."""
    right, loss, n = [0] * len(networks), [0.0] * len(networks), 0
    with no_grad(), networks[0].backend.meter.in_phase("evaluate"):
        for i, batch in enumerate(batches):
            count = len(batch.labels)
            n += count
            images = Tensor(batch.images, backend=networks[0].backend)
            for k, network in enumerate(networks):
                logits = network(images, training=False, step=i)
                right[k] += int((logits.numpy().argmax(axis=1) == batch.labels).sum())
                loss[k] += F.cross_entropy(logits, batch.labels).item() * count
    return [(r / max(n, 1), x / max(n, 1)) for r, x in zip(right, loss, strict=True)]


def _array(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"checkpoint lacks '{name}'")
    if arrays[name].shape != shape:
        raise ValueError(f"checkpoint has '{name}' of shape {arrays[name].shape}, not {shape}")
    return arrays[name]

"""Whole networks: forward and gradients against the reference, and cut == masked on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

import minicst.functional as F
from minicst.backend import Backend, using
from minicst.models import build
from minicst.nn import Network
from minicst.optim import SGD
from minicst.randomness import rng_for
from minicst.selftest.check import DTYPES, Result, Tolerance, checked, failure
from minicst.sparse.liveness import repair
from minicst.sparse.masked_form import masked
from minicst.sparse.subnetwork import cut

NETWORKS, CUT = "networks", "cut == masked"
CLASSES = 5

Passes = tuple[np.ndarray, dict[str, np.ndarray]]  # logits, gradients by name: on the host

LAYERS = "batch norm amplifies rounding from layer to layer"
FLIPS = "an activation within rounding of 0 may fall to the other side of ReLU"
LOGITS = {
    "float64": Tolerance(1e-10, LAYERS),
    "float32": Tolerance(1e-4, LAYERS),
    "tf32": Tolerance(0.1, f"TF32 rounds the operands of products; {LAYERS}"),
}
GRADIENTS = {
    "float64": Tolerance(1e-10, LAYERS),
    "float32": Tolerance(5e-3, FLIPS),
}
FORMS = Tolerance(1e-10, LAYERS)


@dataclass(frozen=True)
class Case:
    """A network of the zoo, narrow enough for seconds.

    Attributes:
        title: in the report.
        network: name of the architecture.
        width: multiplies its channels.
        side: of the images.
        images: of the batch.
        options: further ones of models.build.
    """

    title: str
    network: str
    width: float
    side: int
    images: int
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, backend: Backend, dtype: str) -> Network:
        """Build it on a backend; the numbers come from the host and are the same everywhere."""
        with using(backend):
            network = build(
                self.network,
                CLASSES,
                width=self.width,
                image_size=self.side,
                **self.options,
            )
        # Gamma 1 and beta 0 would hide a channel that is taken for another one.
        rng = rng_for(0, "selftest", self.title, "norms")
        state = network.host_state()
        for name, norm in network.norms().items():
            c, at = norm.gamma.size, f"{name}.norm" if f"{name}.norm.gamma" in state else name
            state[f"{at}.gamma"] = rng.uniform(0.5, 1.5, c)
            state[f"{at}.beta"] = rng.normal(0.2, 0.5, c)
            state[f"{at}.running_mean"] = rng.normal(0.0, 0.5, c)
            state[f"{at}.running_var"] = rng.uniform(0.5, 1.5, c)
        network.load_state({name: array.astype(np.float32) for name, array in state.items()})
        network.astype(dtype)
        return network

    def batch(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels, on the host."""
        rng = rng_for(0, "selftest", self.title, "batch")
        images = rng.standard_normal((self.images, self.side, self.side, 3)).astype(dtype)
        return images, rng.integers(0, CLASSES, self.images)


CASES = (
    Case("vgg-small", "vgg-small", 0.5, 8, 16),
    Case("resnet20, tied, shortcuts B", "resnet20", 0.375, 8, 16),
    Case(
        "resnet20, independent, shortcuts A",
        *("resnet20", 0.375, 8, 16),
        {"residual": "independent", "shortcut": "A"},
    ),
    # Fewer images leave rows enough for some statistics only by a hair: errors grow 300-fold.
    Case("mobilenetv1", "mobilenetv1", 0.125, 64, 16),
    Case("mlp, masks on weights", "mlp", 0.5, 6, 32, {"linear_masks": "weights"}),
)


def check_networks(
    device: Backend,
    reference: Backend,
    precision: str = "float32",
    cases: Iterable[Case] = CASES,
) -> list[Result]:
    """Compare logits and gradients of full networks with the reference's, in both dtypes.

    With TF32, float32 gradients are left out: a share of 1e-3 of all activations falls to the other
    side of ReLU, after which two sound computations differ by some 20 %. Products are compared one
    by one, in operations.py, and float64 has no TF32.
    """
    results = []
    for case in cases:
        for dtype in DTYPES:
            level = precision if dtype == "float32" else dtype
            asked = [(f"{case.title}: logits", LOGITS[level], _logits)]
            if level in GRADIENTS:
                asked.append((f"{case.title}: gradients", GRADIENTS[level], _gradients_of))
            try:
                actual, wanted = (_passes(case, dtype, backend) for backend in (device, reference))
            except Exception as error:
                results += [failure(NETWORKS, name, dtype, t, error) for name, t, _ in asked]
                continue
            results += [
                checked(NETWORKS, name, dtype, t, partial(pairs, actual, wanted))
                for name, t, pairs in asked
            ]
    return results


def check_cut(device: Backend, cases: Iterable[Case] = CASES) -> list[Result]:
    """Compare the cut network with the masked one, both on the device, in float64."""
    return [
        checked(CUT, case.title, "float64", FORMS, partial(_forms, case, device)) for case in cases
    ]


def _passes(case: Case, dtype: str, backend: Backend) -> Passes:
    """Logits and gradients of a forward and a backward pass, on the host."""
    network = case.build(backend, dtype)
    images, labels = case.batch(dtype)
    logits = network(images, training=True)
    F.cross_entropy(logits, labels).backward()
    return logits.numpy(), _gradients(network)


def _logits(actual: Passes, wanted: Passes) -> Iterator[Any]:
    yield actual[0], wanted[0]


def _gradients_of(actual: Passes, wanted: Passes) -> Iterator[Any]:
    return _scaled(actual[1], wanted[1])


def _gradients(network: Network) -> dict[str, np.ndarray]:
    to_numpy = network.backend.to_numpy
    return {
        name: to_numpy(parameter.grad)
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def _scaled(actual: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> Iterator[Any]:
    """Pairs by name. A gradient that is 0 but for rounding is measured by the largest of all.

    Batch norm undoes the scale of what comes before it, so there are such gradients.
    """
    if actual.keys() != wanted.keys():
        raise ValueError("not the same parameters have a gradient")
    largest = max(float(np.abs(array).max(initial=0.0)) for array in wanted.values())
    for name, array in wanted.items():
        yield actual[name], array, 1e-3 * largest


def _forms(case: Case, device: Backend) -> Iterator[Any]:
    """Train a cut and a masked copy for two steps: logits, gradients, all state after each."""
    nets = [case.build(device, "float64") for _ in range(2)]
    optimizers = [SGD(net, 0.05, momentum=0.9, weight_decay=5e-3, nesterov=True) for net in nets]
    images, labels = case.batch("float64")
    rng = rng_for(0, "selftest", case.title, "masks")
    n = nets[0].n_maskable
    for step, rate in enumerate((0.6, 0.3)):
        mask, _ = repair(nets[0], rng.random(n) < rate, rng.random(n))
        sub, definition = cut(nets[0], mask, optimizers[0]), masked(nets[1], mask, optimizers[1])
        logits = []
        for form in (sub, definition):
            form.network.zero_grad()
            logits.append(form(images, training=True, step=step))
            F.cross_entropy(logits[-1], labels).backward()
        yield logits[0].numpy(), logits[1].numpy()
        whole = cut(nets[0], np.ones(n, bool))
        sub.add_gradients_to(whole)
        gradients, wanted = _gradients(whole.network), _gradients(nets[1])
        for name, array in wanted.items():  # what has no live entry isn't in the cut network
            gradients.setdefault(name, np.zeros_like(array))
            gradients[name] = gradients[name].reshape(array.shape)
        yield from _scaled(gradients, wanted)
        sub.update()
        sub.paste()
        definition.update()
        cut_state, masked_state = (
            _state(net, optimizer) for net, optimizer in zip(nets, optimizers, strict=True)
        )
        for name, array in masked_state.items():
            yield cut_state[name], array


def _state(network: Network, optimizer: SGD) -> dict[str, np.ndarray]:
    state = dict(network.host_state())
    for name, arrays in optimizer.state.items():
        state |= {f"{name}/{k}": network.backend.to_numpy(a) for k, a in arrays.items()}
    return state

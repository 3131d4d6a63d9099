"""Optimizers and learning-rate schedules.

An optimizer's state is one array of its parameter's shape for each name, so that cut and paste can
gather and scatter it channel by channel as they do weights.
"""

from __future__ import annotations

import math
from typing import Any

from minicst.autograd import Parameter
from minicst.backend.base import Array
from minicst.nn.module import Module

SCHEDULES = ("constant", "step", "cosine")


class Optimizer:
    """Base: parameters by name, state by parameter and state name.

    Attributes:
        lr: learning rate; set it before each step to follow a schedule.
        parameters: {name: Parameter}.
        state: {parameter name: {state name: array of the parameter's shape}}.
        steps: number of steps taken.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, parameters: Module | dict[str, Parameter], lr: float) -> None:
        if not lr >= 0.0:
            raise ValueError(f"learning rate {lr}: it must not be negative")
        if isinstance(parameters, Module):
            parameters = dict(parameters.named_parameters())
        self.parameters = parameters
        self.lr = lr
        self.steps = 0
        self.state: dict[str, dict[str, Array]] = {
            name: {key: p.backend.zeros(p.shape, p.dtype) for key in self.state_names}
            for name, p in parameters.items()
        }

    def options(self) -> dict[str, Any]:
        """Arguments besides the parameters."""
        return {"lr": self.lr}

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        self.steps += 1
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                grad = parameter.backend.xp.ascontiguousarray(parameter.grad)
                self._update(parameter, grad, self.state[name])

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _update(self, parameter: Parameter, grad: Any, state: dict[str, Any]) -> None:
        raise TypeError(f"{type(self).__name__} has no update")

    def like(self, parameters: dict[str, Parameter]) -> Optimizer:
        """Return the same optimizer, at the same step, for other parameters; its state is zero."""
        twin = type(self)(parameters, **self.options())
        twin.steps = self.steps
        return twin


class SGD(Optimizer):
    """Stochastic gradient descent: g += decay w;  v = momentum v + g;  w -= lr v.

    With nesterov, w -= lr (g + momentum v). Weight decay acts on every parameter it is given.

    Args:
        parameters: a module, or parameters by name.
        lr: learning rate.
        momentum: 0 keeps no state.
        weight_decay: coefficient of the L2 penalty's gradient.
        nesterov: see above.
    """

    def __init__(
        self,
        parameters: Module | dict[str, Parameter],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if not 0.0 <= momentum < 1.0 or not weight_decay >= 0.0:
            raise ValueError(
                f"momentum {momentum} must be in [0, 1) and weight decay {weight_decay} "
                "not negative"
            )
        if nesterov and momentum == 0.0:
            raise ValueError("nesterov needs momentum > 0")
        self.state_names = ("velocity",) if momentum else ()
        super().__init__(parameters, lr)
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov

    def options(self) -> dict[str, Any]:
        """Arguments besides the parameters."""
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "nesterov": self.nesterov,
        }

    def _update(self, parameter: Parameter, grad: Any, state: dict[str, Any]) -> None:
        parameter.backend.sgd_update(
            parameter.data,
            grad,
            state.get("velocity"),
            self.lr,
            self.momentum,
            self.weight_decay,
            self.nesterov,
        )


class Adam(Optimizer):
    """Adam with bias correction; weight decay is added to the gradient.

    Source: Kingma and Ba, "Adam" (2015), Algorithm 1.

    Args:
        parameters: a module, or parameters by name.
        lr: learning rate.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: coefficient of the L2 penalty's gradient.
    """

    state_names = ("first", "second")

    def __init__(
        self,
        parameters: Module | dict[str, Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas {betas} must be in [0, 1)")
        if not eps > 0.0 or not weight_decay >= 0.0:
            raise ValueError(
                f"eps {eps} must be positive and weight decay {weight_decay} not negative"
            )
        super().__init__(parameters, lr)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def options(self) -> dict[str, Any]:
        """Arguments besides the parameters."""
        return {
            "lr": self.lr,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def _update(self, parameter: Parameter, grad: Any, state: dict[str, Any]) -> None:
        parameter.backend.adam_update(
            parameter.data,
            grad,
            state["first"],
            state["second"],
            self.steps,
            self.lr,
            self.betas,
            self.eps,
            self.weight_decay,
        )


def schedule(kind: str, progress: float, warmup: float = 0.0) -> float:
    """Factor on the learning rate after a share `progress` of all steps.

    Linear warm-up from 0 to 1 over the first share `warmup`; then, with t in [0, 1] over the rest:
    constant 1;  step 1, 0.1 from t = 1/2, 0.01 from t = 3/4;  cosine (1 + cos(pi t)) / 2.

    Args:
        kind: one of SCHEDULES.
        progress: in [0, 1].
        warmup: in [0, 1).

    Raises:
        ValueError: for an unknown kind or an impossible warm-up.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule '{kind}': choose one of {', '.join(SCHEDULES)}")
    if not 0.0 <= warmup < 1.0:
        raise ValueError(f"warm-up {warmup}: a share of the steps in [0, 1) is needed")
    if progress < warmup:
        return progress / warmup
    t = (progress - warmup) / (1.0 - warmup)
    if kind == "constant":
        return 1.0
    if kind == "step":
        return 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01
    return 0.5 * (1.0 + math.cos(math.pi * min(t, 1.0)))

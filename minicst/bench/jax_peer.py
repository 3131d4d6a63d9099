"""JAX peer of `minicst bench`: run by another interpreter, imports nothing of minicst.

Speaks as torch_peer does: {"ready": "JAX ..."}, then a line of JSON for a line of JSON. It times
"forward" and "forward_backward" of a network, jitted, channels last, on as many cores as minicst
has threads. Batch norm takes batch statistics; running ones aren't kept, which favours JAX a
little.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from typing import Any

PASSES = ("forward", "forward_backward")


def limit_cores(threads: int) -> None:
    """Run on this many cores; before JAX is imported, which starts a thread for each."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Contestant:
    """A network with its images and labels, compiled.

    Args:
        request: of "build".
    """

    def __init__(self, request: dict[str, Any]) -> None:
        import jax
        import numpy as np

        self.spec = request["spec"]
        rng = np.random.default_rng(0)
        self.parameters = parameters(self.spec, rng)
        self.images = jax.numpy.asarray(rng.standard_normal(request["images"], np.float32))
        self.labels = jax.numpy.asarray(rng.integers(0, 10, request["images"][0]))
        self.forward = jax.jit(lambda p, x: logits(self.spec, p, x))
        self.backward = jax.jit(jax.value_and_grad(self._loss, has_aux=True))
        for what in PASSES:
            self.time(what)  # compiles

    def _loss(self, p: Any, x: Any, labels: Any) -> Any:
        import jax

        out = logits(self.spec, p, x)
        log_p = jax.nn.log_softmax(out)
        return -jax.numpy.take_along_axis(log_p, labels[:, None], axis=1).mean(), out

    def time(self, what: str) -> float:
        """Seconds of one pass, its result waited for."""
        import jax

        start = time.perf_counter()
        if what == "forward":
            result = self.forward(self.parameters, self.images)
        else:
            result = self.backward(self.parameters, self.images, self.labels)
        jax.block_until_ready(result)
        return time.perf_counter() - start

    def compute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load given arrays; return logits, loss and gradients."""
        given = {name: unpacked(value) for name, value in request["arrays"].items()}
        p = {name: given[name] for name in self.parameters}
        images, labels = unpacked(request["images"]), unpacked(request["labels"])
        (loss, out), gradients = self.backward(p, images, labels)
        return {
            "logits": packed(out),
            "loss": float(loss),
            "gradients": {name: packed(value) for name, value in gradients.items()},
        }


def parameters(spec: dict[str, Any], rng: Any) -> dict[str, Any]:
    """Weights, He normal, in minicst's layout and by its names."""
    import jax
    import numpy as np

    found: dict[str, Any] = {}
    for node in spec["nodes"]:
        name, config = node["name"], node["config"]
        if node["kind"] == "norm":
            found[f"{name}.norm.gamma"] = np.ones(config["channels"], np.float32)
            found[f"{name}.norm.beta"] = np.zeros(config["channels"], np.float32)
        if node["kind"] != "unit":
            continue
        if "pattern" in config or config.get("noise"):
            raise ValueError("this peer builds no sparse linear layers and no planted noise")
        c_in, c_out, kernel = config["c_in"], config["c_out"], config.get("kernel")
        shape: tuple[int, ...] = (c_out, c_in)
        if kernel is not None:
            shape = (c_out, kernel, kernel, c_in // config["groups"])
        scale = (2.0 / max(int(np.prod(shape[1:])), 1)) ** 0.5
        found[f"{name}.transform.weight"] = (rng.standard_normal(shape) * scale).astype(np.float32)
        if config["bias"]:
            found[f"{name}.transform.bias"] = np.zeros(c_out, np.float32)
        if config["norm"]:
            found[f"{name}.norm.gamma"] = np.ones(c_out, np.float32)
            found[f"{name}.norm.beta"] = np.zeros(c_out, np.float32)
    return {name: jax.numpy.asarray(value) for name, value in found.items()}


def logits(spec: dict[str, Any], p: dict[str, Any], x: Any) -> Any:
    """Forward pass in training mode."""
    values = {"input": x}
    for node in spec["nodes"]:
        inputs = [values[read] for read in node["inputs"]]
        values[node["name"]] = node_output(node["name"], node["kind"], node["config"], inputs, p)
    return values[spec["nodes"][-1]["name"]]


def node_output(name: str, kind: str, config: dict[str, Any], inputs: list[Any], p: Any) -> Any:
    """Output of one node."""
    import jax
    from jax import numpy as jnp

    x = inputs[0]
    if kind == "unit":
        x = transformed(x, name, config, p)
        if config["norm"]:
            x = normalized(x, name, config["eps"], p)
        return jax.nn.relu(x) if config["relu"] else x
    if kind == "norm":
        return jax.nn.relu(normalized(x, name, config["eps"], p))
    if kind == "pool":
        return pooled(x, config)
    if kind == "global-pool":
        return x.mean((1, 2))
    if kind == "flatten":
        return x.reshape(x.shape[0], -1)
    if kind == "shortcut":
        x = x[:, :: config["stride"], :: config["stride"], jnp.array(config["take"], int)]
        zeros = jnp.zeros((*x.shape[:-1], config["channels"]), x.dtype)
        return zeros.at[..., jnp.array(config["place"], int)].set(x)
    if kind == "add":
        total: Any = 0.0
        for stream, place in zip(inputs, config["places"] or [None] * len(inputs), strict=True):
            if place is not None:
                zeros = jnp.zeros((*stream.shape[:-1], config["channels"]), stream.dtype)
                stream = zeros.at[..., jnp.array(place, int)].set(stream)
            total = total + stream
        return jax.nn.relu(total) if config["relu"] else total
    raise ValueError(f"this peer knows no node of kind '{kind}'")


def transformed(x: Any, name: str, config: dict[str, Any], p: Any) -> Any:
    """Convolution or linear."""
    import jax

    weight, bias = p[f"{name}.transform.weight"], p.get(f"{name}.transform.bias")
    if config.get("kernel") is None:
        out = x @ weight.T
    else:
        out = jax.lax.conv_general_dilated(
            x,
            weight,
            (config["stride"],) * 2,
            [(config["padding"],) * 2] * 2,
            dimension_numbers=("NHWC", "OHWI", "NHWC"),
            feature_group_count=config["groups"],
        )
    return out if bias is None else out + bias


def normalized(x: Any, name: str, eps: float, p: Any) -> Any:
    """Batch norm with batch statistics."""
    import jax

    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
    scale = p[f"{name}.norm.gamma"] * jax.lax.rsqrt(variance + eps)
    return x * scale + (p[f"{name}.norm.beta"] - mean * scale)


def pooled(x: Any, config: dict[str, Any]) -> Any:
    """Max or average pooling; the border counts in the average, as in minicst."""
    import jax

    k, s, pad = config["kernel"], config["stride"], config["padding"]
    window, step = (1, k, k, 1), (1, s, s, 1)
    border = [(0, 0), (pad, pad), (pad, pad), (0, 0)]
    if config["how"] == "max":
        return jax.lax.reduce_window(x, -jax.numpy.inf, jax.lax.max, window, step, border)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, step, border) / k**2


def unpacked(value: dict[str, Any]) -> Any:
    """Array of base64 text."""
    import numpy as np

    data = base64.b64decode(value["data"])
    return np.frombuffer(data, value["dtype"]).reshape(value["shape"])


def packed(array: Any) -> dict[str, Any]:
    """Base64 text of an array, float32."""
    import numpy as np

    array = np.asarray(array, np.float32)
    data = base64.b64encode(array.tobytes()).decode()
    return {"data": data, "dtype": "float32", "shape": list(array.shape)}


def answer(request: dict[str, Any], built: dict[str, Contestant]) -> dict[str, Any]:
    """Do what a request asks."""
    do, name = request["do"], request["name"]
    if do == "build":
        built[name] = Contestant(request)
    elif do == "drop":
        built.pop(name, None)
    elif do == "compute":
        return built[name].compute(request)
    elif do == "time" and request["what"] in PASSES:
        return {"seconds": built[name].time(request["what"])}
    else:
        raise ValueError(f"unknown request {do} {request.get('what', '')}")
    return {}


def main() -> None:
    """Answer requests until standard input ends."""
    limit_cores(json.loads(sys.argv[1])["threads"])
    import jax

    built: dict[str, Contestant] = {}
    print(json.dumps({"ready": f"JAX {jax.__version__}"}), flush=True)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), built)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()

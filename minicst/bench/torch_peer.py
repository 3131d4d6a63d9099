"""PyTorch peer of `minicst bench`: run by another interpreter, imports nothing of minicst.

Answers each line of standard input, a JSON object, by one line of JSON. First it says what it is:
{"ready": "PyTorch ..."}. Then

    {"do": "build", "name": ..., "spec": Network.spec(), "images": [n, h, w, c]}   {}
    {"do": "time", "name": ..., "what": one of PASSES, "repeats": ...}            {"seconds": ...}
    {"do": "compute", "name": ..., "arrays": ..., "images": ..., "labels": ...}   loss and gradients
    {"do": "peak", "name": ..., "what": one of PASSES}                            {"bytes": ...}
    {"do": "drop", "name": ...}                                                   {}

A request that fails is answered {"error": one line}. "masked_step" is the authors' way: dense
convolutions of weight * mask, two forward and two backward passes.

On "device": "cuda" cuDNN searches for the fastest convolution of every shape when it first meets
it (torch.backends.cudnn.benchmark), as whoever wants speed has it do, unless a "build" says
"search": false. "precision": "tf32" lets products and convolutions round to it, "float32" neither.
Images and labels lie on the device, as minicst's do.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PASSES = ("forward", "forward_backward", "step", "masked_step")
SGD = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
TINY = 1e-20  # as in the released code, under the root
HALVINGS = 20  # of the released code's bisection


class MaskedConv(nn.Conv2d):
    """Dense convolution of weight * mask, one mask entry a filter, drawn in every forward pass."""

    keep_prob: Tensor  # (c_out,), a view of the network's flat vector
    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Draw the mask, convolve."""
        self.mask = (torch.rand_like(self.keep_prob) < self.keep_prob).to(x.dtype)
        weight = self.weight * self.mask.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, 1, self.groups)


class UnitModule(nn.Module):
    """Convolution or linear -> batch norm -> ReLU."""

    def __init__(self, config: dict[str, Any], masked: bool) -> None:
        super().__init__()
        if "pattern" in config or config.get("noise"):
            raise ValueError("this peer builds no sparse linear layers and no planted noise")
        c_in, c_out, kernel = config["c_in"], config["c_out"], config.get("kernel")
        self.transform: nn.Module
        if kernel is None:
            self.transform = nn.Linear(c_in, c_out, config["bias"])
        else:
            kind = MaskedConv if masked and config["group"] is not None else nn.Conv2d
            self.transform = kind(
                *(c_in, c_out, kernel, config["stride"], config["padding"]),
                groups=config["groups"],
                bias=config["bias"],
            )
        self.norm: nn.Module | None = None
        if config["norm"]:
            norm = nn.BatchNorm1d if kernel is None else nn.BatchNorm2d
            self.norm = norm(c_out, config["eps"], config["momentum"])
        self.relu = config["relu"]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        x = self.transform(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu_(x) if self.relu else x


class NormModule(nn.Module):
    """Batch norm -> ReLU."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(config["channels"], config["eps"], config["momentum"])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        return F.relu_(self.norm(x))


class PoolModule(nn.Module):
    """Max or average pooling."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.pool = F.max_pool2d if config["how"] == "max" else F.avg_pool2d
        self.sizes = (config["kernel"], config["stride"], config["padding"])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        return self.pool(x, *self.sizes)


class GlobalPoolModule(nn.Module):
    """Mean over all pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        return x.mean((2, 3))


class FlattenModule(nn.Module):
    """Pixel by pixel, as minicst's channels-last arrays lie."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        return x.permute(0, 2, 3, 1).flatten(1)


class ShortcutModule(nn.Module):
    """Every stride-th pixel of some channels, among zero channels."""

    def __init__(self, config: dict[str, Any], channels: int) -> None:
        super().__init__()
        self.stride, self.channels = config["stride"], config["channels"]
        take, place = config["take"], config["place"]
        self.take = None if take == list(range(channels)) else torch.tensor(take)
        self.place = None if place == list(range(len(place))) else torch.tensor(place)
        self.padded = self.channels - len(place)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output."""
        x = x[:, :, :: self.stride, :: self.stride]
        if self.take is not None:
            x = x.index_select(1, self.take)
        if self.place is not None:
            return _placed(x, self.place, self.channels)
        return F.pad(x, (0, 0, 0, 0, 0, self.padded)) if self.padded else x


class AddModule(nn.Module):
    """Sum of streams, each at its channels of the union, then ReLU if asked."""

    def __init__(self, config: dict[str, Any], n_inputs: int) -> None:
        super().__init__()
        self.channels, self.relu = config["channels"], config["relu"]
        places = config["places"] or [None] * n_inputs
        self.places = [None if place is None else torch.tensor(place) for place in places]

    def forward(self, *streams: Tensor) -> Tensor:
        """Compute the output."""
        placed = [
            x if place is None else _placed(x, place, self.channels)
            for x, place in zip(streams, self.places, strict=True)
        ]
        total = placed[0]
        for stream in placed[1:]:
            total = total + stream
        return F.relu(total) if self.relu else total


def _placed(x: Tensor, place: Tensor, channels: int) -> Tensor:
    out = x.new_zeros((x.shape[0], channels, *x.shape[2:]))
    if x.is_contiguous(memory_format=torch.channels_last):
        out = out.contiguous(memory_format=torch.channels_last)
    return out.index_copy(1, place, x)


class Net(nn.Module):
    """A minicst network from its spec: nodes in the order in which data walks through them."""

    def __init__(self, spec: dict[str, Any], masked: bool = False) -> None:
        super().__init__()
        channels = {"input": spec["in_channels"]}
        self.order: list[tuple[str, list[str]]] = []
        self.nodes = nn.ModuleDict()
        for node in spec["nodes"]:
            name, kind, config, inputs = (node[k] for k in ("name", "kind", "config", "inputs"))
            module: nn.Module
            if kind == "unit":
                module, out = UnitModule(config, masked), config["c_out"]
            elif kind == "norm":
                module, out = NormModule(config), config["channels"]
            elif kind == "pool":
                module, out = PoolModule(config), channels[inputs[0]]
            elif kind == "global-pool":
                module, out = GlobalPoolModule(), channels[inputs[0]]
            elif kind == "flatten":
                module, out = FlattenModule(), channels[inputs[0]] * config["pixels"]
            elif kind == "shortcut":
                module, out = ShortcutModule(config, channels[inputs[0]]), config["channels"]
            elif kind == "add":
                module, out = AddModule(config, len(inputs)), config["channels"]
            else:
                raise ValueError(f"this peer knows no node of kind '{kind}'")
            self.nodes[name.replace(".", "/")] = module
            self.order.append((name, inputs))
            channels[name] = out
        self.last_read = {read: name for name, inputs in self.order for read in inputs}

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        values = {"input": x}
        for name, inputs in self.order:
            values[name] = self.nodes[name.replace(".", "/")](*(values[read] for read in inputs))
            for read in inputs:
                if self.last_read[read] == name:
                    values.pop(read, None)
        return values[self.order[-1][0]]

    def named(self) -> dict[str, Tensor]:
        """{minicst's name: parameter or running statistic}."""
        renamed = {"norm.weight": "norm.gamma", "norm.bias": "norm.beta"}
        found = {}
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            _, node, rest = name.split(".", 2)
            if rest != "norm.num_batches_tracked":
                found[f"{node.replace('/', '.')}.{renamed.get(rest, rest)}"] = tensor
        return found


class Contestant:
    """A network with its images, labels and optimizers.

    Args:
        request: of "build".
        channels_last: memory format.
        device: "cpu" or "cuda".
    """

    def __init__(self, request: dict[str, Any], channels_last: bool, device: str = "cpu") -> None:
        self.device, self.search = device, request.get("search", True)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        # Only here: as a default for good, the device would cost every later call a little.
        with torch.device(device):
            self._make(request)

    def _make(self, request: dict[str, Any]) -> None:
        keep_prob = request.get("keep_prob")
        self.net = Net(request["spec"], masked=keep_prob is not None).train()
        self.net = self.net.to(memory_format=self.format)
        n, h, w, c = request["images"]
        self.x = torch.randn(n, c, h, w).contiguous(memory_format=self.format)
        self.labels = torch.randint(0, 10, (n,))
        self.optimizer = _fused_or_not(torch.optim.SGD, list(self.net.parameters()), SGD)
        self.masked = [m for m in self.net.modules() if isinstance(m, MaskedConv)]
        if keep_prob is not None:
            sizes = [m.out_channels for m in self.masked]
            self.keep_prob = nn.Parameter(torch.full((sum(sizes),), keep_prob))
            for conv, part in zip(self.masked, self.keep_prob.detach().split(sizes), strict=True):
                conv.keep_prob = part
            self.budget = keep_prob * self.keep_prob.numel()
            # A tiny rate, as minicst's in the same bench: the share of live filters stays.
            self.adam = _fused_or_not(torch.optim.Adam, [self.keep_prob], {"lr": 1e-6})

    def loss(self) -> Tensor:
        """Cross-entropy of a forward pass."""
        return F.cross_entropy(self.net(self.x), self.labels)

    def forward(self) -> None:
        """Forward pass without a tape."""
        with torch.no_grad():
            self.net(self.x)

    def forward_backward(self) -> None:
        """Forward and backward pass."""
        self.net.zero_grad(set_to_none=True)
        self.loss().backward()

    def step(self) -> None:
        """Dense training step."""
        self.forward_backward()
        self.optimizer.step()

    def masked_step(self) -> None:
        """Training step of the authors' released way, its arithmetic on flat vectors.

        Two masks, and for both a dense forward and a dense backward pass of weight * mask; weights
        take the mean gradient, keep_prob (L - L') / 2 * (m - m') / sqrt(s (1 - s)), Adam, and the
        projection by bisection.
        """
        self.net.zero_grad(set_to_none=True)
        losses, masks = [], []
        for _ in range(2):
            loss = self.loss()
            (loss / 2).backward()
            losses.append(loss.item())
            masks.append(torch.cat([conv.mask for conv in self.masked]))
        self.optimizer.step()
        with torch.no_grad():
            s = self.keep_prob
            root = ((s + TINY) * (1 - s + TINY)).sqrt()
            s.grad = (losses[0] - losses[1]) / 2 * (masks[0] - masks[1]) / root
            self.adam.step()
            low, high = 0.0, float(s.max())
            if float(s.clamp(0, 1).sum()) > self.budget:
                for _ in range(HALVINGS):
                    middle = (low + high) / 2
                    too_many = float((s - middle).clamp(0, 1).sum()) > self.budget
                    low, high = (middle, high) if too_many else (low, middle)
            s.sub_(high if low > 0.0 else 0.0).clamp_(0, 1)

    def seconds(self, what: str, repeats: int) -> float:
        """Seconds of a pass, mean over so many in a row, after one that wakes the GPU up."""
        run = getattr(self, what)
        torch.backends.cudnn.benchmark = self.search
        if repeats > 1:
            run()
        wait(self.device)
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait(self.device)
        return (time.perf_counter() - start) / repeats

    def peak(self, what: str) -> int | None:
        """Most bytes that tensors held at one time in a pass, above those before; None on a CPU."""
        if self.device == "cpu":
            return None
        run = getattr(self, what)
        torch.backends.cudnn.benchmark = self.search
        run()  # the first finds its convolutions, by tries that take memory
        self.net.zero_grad(set_to_none=True)
        wait(self.device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        wait(self.device)
        return int(torch.cuda.max_memory_allocated() - before)

    def compute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load given arrays; return logits, loss, gradients and running statistics."""
        named = self.net.named()
        with torch.no_grad():
            for name, packed in request["arrays"].items():
                value = _unpacked(packed).to(self.device)
                named[name].copy_(value.permute(0, 3, 1, 2) if value.ndim == 4 else value)
        images = _unpacked(request["images"]).to(self.device).permute(0, 3, 1, 2)
        self.x = images.contiguous(memory_format=self.format)
        self.labels = _unpacked(request["labels"]).to(self.device).long()
        self.net.zero_grad(set_to_none=True)
        logits = self.net(self.x)
        loss = F.cross_entropy(logits, self.labels)
        loss.backward()
        gradients = {
            name: _packed(p.grad)
            for name, p in named.items()
            if p.requires_grad and p.grad is not None
        }
        statistics = {name: _packed(t) for name, t in named.items() if not t.requires_grad}
        return {
            "logits": _packed(logits),
            "loss": loss.item(),
            "gradients": gradients,
            "statistics": statistics,
        }


def _fused_or_not(kind: Any, parameters: list[Tensor], options: dict[str, Any]) -> Any:
    """Return the optimizer's fused form, the fastest, where this PyTorch has it."""
    try:
        return kind(parameters, fused=True, **options)
    except (RuntimeError, TypeError):
        return kind(parameters, **options)


def _unpacked(packed: dict[str, Any]) -> Tensor:
    data = bytearray(base64.b64decode(packed["data"]))
    dtype = getattr(torch, packed["dtype"])
    return torch.frombuffer(data, dtype=dtype).reshape(packed["shape"])


def _packed(tensor: Tensor) -> dict[str, Any]:
    """float32, channels last."""
    tensor = tensor.detach().float().cpu()
    tensor = (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).contiguous()
    data = bytes(tensor.view(-1).view(torch.uint8).tolist())
    return {
        "data": base64.b64encode(data).decode(),
        "dtype": "float32",
        "shape": list(tensor.shape),
    }


def wait(device: str) -> None:
    """Wait until everything asked for has been computed."""
    if device == "cuda":
        torch.cuda.synchronize()


def answer(request: dict[str, Any], built: dict[str, Contestant], options: dict[str, Any]) -> Any:
    """Do what a request asks."""
    do, name = request["do"], request["name"]
    device = options.get("device", "cpu")
    if do == "build":
        built[name] = Contestant(request, options["channels_last"], device)
    elif do == "drop":
        built.pop(name, None)
        if device == "cuda":
            torch.cuda.empty_cache()  # minicst runs on the same GPU
    elif do == "compute":
        return built[name].compute(request)
    elif do == "time" and request["what"] in PASSES:
        return {"seconds": built[name].seconds(request["what"], request.get("repeats", 1))}
    elif do == "peak" and request["what"] in PASSES:
        return {"bytes": built[name].peak(request["what"])}
    else:
        raise ValueError(f"unknown request {do} {request.get('what', '')}")
    return {}


def set_up(options: dict[str, Any]) -> str:
    """Set threads, seed and precision; return what this PyTorch is."""
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    tf32 = options.get("precision", "float32") == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    name = f"PyTorch {torch.__version__}"
    if options.get("device", "cpu") == "cpu":
        return name
    if not torch.cuda.is_available():
        sys.exit(f"{name} sees no GPU")
    return f"{name} with cuDNN {torch.backends.cudnn.version()}"


def main() -> None:
    """Answer requests until standard input ends."""
    options = json.loads(sys.argv[1])
    version = set_up(options)
    built: dict[str, Contestant] = {}
    print(json.dumps({"ready": version}), flush=True)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), built, options)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()

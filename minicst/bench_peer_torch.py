"""PyTorch peer of `minicst bench`: run by another interpreter, imports nothing of minicst.

Reads a line "forward" or "forward_backward" from standard input, answers with the seconds of one
run; the first line it prints says what it is. Layers come as JSON in the first argument.
"""

import json
import sys
import time

import torch
from torch import nn


def build(layers: list, num_classes: int, in_channels: int) -> nn.Sequential:
    """Chain of 3x3 convolutions, batch norm, ReLU and 2x2 max pooling, then one linear layer."""
    modules: list[nn.Module] = []
    c_in = in_channels
    for layer in layers:
        if layer == "M":
            modules.append(nn.MaxPool2d(2))
            continue
        modules += [
            nn.Conv2d(c_in, layer, 3, padding=1, bias=False),
            nn.BatchNorm2d(layer),
            nn.ReLU(inplace=True),
        ]
        c_in = layer
    modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, num_classes)]
    return nn.Sequential(*modules)


def main() -> None:
    """Answer requests until standard input ends."""
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    model = build(spec["layers"], 10, spec["in_channels"]).train()
    x = torch.randn(spec["batch"], spec["in_channels"], spec["size"], spec["size"])
    if spec["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (spec["batch"],))
    print(f"PyTorch {torch.__version__}", flush=True)
    for line in sys.stdin:
        backward = line.strip() == "forward_backward"
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        if backward:
            nn.functional.cross_entropy(model(x), labels).backward()
        else:
            with torch.no_grad():
                model(x)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()

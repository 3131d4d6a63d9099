"""`minicst macs`: parameters, multiply-adds and activations of a network, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from minicst.models import ARCHITECTURES, build
from minicst.nn import Network
from minicst.nn.node import Shape
from minicst.randomness import rng_for
from minicst.sparse.accounting import count_macs
from minicst.sparse.expected import expected_counts, keep_rate_for
from minicst.sparse.liveness import repair
from minicst.sparse.masks import sample_mask
from minicst.tables import table as new_table


@dataclass(frozen=True)
class NetworkSettings:
    """A network by name, and the images it is for; part of several commands' settings."""

    network: Annotated[str, tyro.conf.Positional]
    """Network, as in train."""
    num_classes: int | None = None
    """Outputs of the classifier; 10 by default, 1000 for ImageNet's networks."""
    width: float = 1.0
    """Multiplies every hidden channel count."""
    shortcut: Literal["A", "B"] = "B"
    """ResNet shortcuts into a new stage: A pads with zero channels, B is a 1x1 convolution."""
    residual: Literal["tied", "independent"] = "tied"
    """Masks at residual adds."""
    linear_masks: Literal["channels", "weights"] = "channels"
    """Masks of linear layers: one for a hidden neuron, or one for every weight."""
    input: str | None = None
    """Images as CxHxW; those of the network's published counts by default, as 3x32x32."""
    seed: int = 0
    """Of the sampled mask, the same in macs and graph."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class MacsSettings(NetworkSettings):
    """Count parameters, multiply-adds (MACs) and activations of a network."""

    keep_rate: float = 0.5
    """Uniform keep probability for the expected and the sampled count, in (0, 1]."""
    keep_macs: str | None = None
    """Find the keep rate whose expected MACs are this share, as 8.7% or .087, in (0, 1]."""
    keep_params: str | None = None
    """The same for a share of the parameters."""
    json: bool = False
    """Print JSON."""


def parse_input(text: str) -> tuple[int, int, int]:
    """'3x32x32' -> (h, w, c) = (32, 32, 3).

    Raises:
        ValueError: if it isn't three positive integers.
    """
    try:
        c, h, w = (int(part) for part in text.lower().split("x"))
    except ValueError:
        c = h = w = 0
    if min(c, h, w) < 1:
        raise ValueError(f"--input {text}: three positive numbers CxHxW are needed, as 3x32x32")
    return h, w, c


def network_and_shape(settings: NetworkSettings) -> tuple[Network, Shape]:
    """Build the network of a command's settings; return it and the shape (h, w, c) of its images.

    Where num_classes or input is None they are those of the network's published counts.

    Raises:
        ValueError: if a setting is impossible.
    """
    name = settings.network
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown network '{name}': choose one of {', '.join(ARCHITECTURES)}")
    known, classes = ARCHITECTURES[name], settings.num_classes
    h, w, c = known.image if settings.input is None else parse_input(settings.input)
    if name == "mlp" and h != w:
        raise ValueError(f"--input {settings.input}: mlp takes square images")
    network = build(
        name,
        num_classes=known.num_classes if classes is None else classes,
        in_channels=c,
        width=settings.width,
        residual=settings.residual,
        shortcut=settings.shortcut,
        image_size=h,
        linear_masks=settings.linear_masks,
    )
    network.shapes((h, w, c))
    return network, (h, w, c)


def parse_share(text: str, option: str) -> float:
    """'8.7%' or '.087' -> .087.

    Raises:
        ValueError: if it isn't a number in (0, 1], or a percentage in (0, 100].
    """
    try:
        share = float(text.rstrip("% ")) / (100.0 if "%" in text else 1.0)
    except ValueError:
        share = float("nan")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"{option} {text}: a share in (0, 1] is needed, as 8.7% or 0.087")
    return share


def keep_rate_of(settings: Any, network: Network, shape: Shape) -> float:
    """Return the keep rate of settings with keep_rate, keep_macs and keep_params.

    Raises:
        ValueError: if both shares are given, or one is impossible.
    """
    if settings.keep_macs is not None and settings.keep_params is not None:
        raise ValueError("--keep-macs and --keep-params both set the keep rate: give one of them")
    for option, of in (("--keep-macs", "macs"), ("--keep-params", "params")):
        text = getattr(settings, option[2:].replace("-", "_"))
        if text is not None:
            return keep_rate_for(network, shape, parse_share(text, option), of)
    return settings.keep_rate


def count(settings: MacsSettings) -> dict[str, Any]:
    """Count everything.

    Raises:
        ValueError: if a setting is impossible.
    """
    network, shape = network_and_shape(settings)
    keep_rate = keep_rate_of(settings, network, shape)
    if not 0.0 < keep_rate <= 1.0:
        raise ValueError(
            f"keep rate {keep_rate}: it is the share of {network.maskable} that are kept, in (0, 1]"
        )
    keep_prob = np.full(network.n_maskable, keep_rate)
    drawn = sample_mask(keep_prob, rng_for(settings.seed, "macs"))
    mask, _ = repair(network, drawn, keep_prob)
    dense, sampled = count_macs(network, shape), count_macs(network, shape, mask)
    params_expected, macs_expected = expected_counts(network, shape, keep_prob)
    layers = [
        {
            "name": full.name,
            "kind": full.kind,
            "c_in": full.c_in,
            "c_out": full.c_out,
            "out": list(full.out_shape),
            "params": full.params,
            "macs": full.macs,
            "c_in_sampled": part.c_in,
            "c_out_sampled": part.c_out,
            "macs_sampled": part.macs,
        }
        for full, part in zip(dense.layers, sampled.layers, strict=True)
    ]
    return {
        "network": settings.network,
        "input": [shape[2], shape[0], shape[1]],
        "num_classes": network.num_classes,
        "width": settings.width,
        "residual": settings.residual,
        "shortcut": settings.shortcut,
        "maskable": network.maskable,
        "keep_rate": keep_rate,
        "params": dense.params,
        "params_expected": params_expected,
        "params_sampled": sampled.params,
        "channels": network.n_maskable,
        "channels_sampled": int(mask.sum()),
        "macs": dense.macs,
        "macs_expected": macs_expected,
        "macs_sampled": sampled.macs,
        "flops": 2 * dense.macs,
        "activation_bytes": dense.activation_bytes,
        "activation_bytes_sampled": sampled.activation_bytes,
        "convention": "one multiply-add = 1 MAC; FLOPs = 2 x MACs; convolution and linear layers",
        "layers": layers,
    }


def print_counts(console: Console, counts: dict[str, Any]) -> None:
    """Print the table per layer, in two parts where it is too wide for the console; the totals."""
    size = "x".join(map(str, counts["input"]))
    title = f"{counts['network']}, images {size}, {counts['num_classes']} classes"
    columns = ("layer", "kind", "channels", "output", "params", "MACs", "channels*", "MACs*")
    rows = [
        [
            layer["name"],
            layer["kind"],
            f"{layer['c_in']}→{layer['c_out']}",
            "x".join(map(str, layer["out"])) or "1",
            f"{layer['params']:,}",
            f"{layer['macs']:,}",
            f"{layer['c_in_sampled']}→{layer['c_out_sampled']}",
            f"{layer['macs_sampled']:,}",
        ]
        for layer in counts["layers"]
    ]

    def part(places: list[int], left: int) -> Table:
        made = new_table(title, *(columns[i] for i in places), left=left)
        for row in rows:
            made.add_row(*(row[i] for i in places))
        return made

    parts = [part([*range(8)], left=2)]
    unbounded = console.options.update_width(1000)
    if console.measure(parts[0], options=unbounded).maximum > console.width:
        parts = [part([0, 1, 2, 4, 5], left=2), part([0, 3, 6, 7], left=1)]
    parts[-1].caption = f"* one mask sampled at keep rate {counts['keep_rate']:.4g}"
    for table in parts:
        console.print(table)
    totals = Table.grid(padding=(0, 2))
    totals.add_column()
    totals.add_column(justify="right")
    totals.add_column(justify="right")
    macs = counts["macs"]

    def row(label: str, number: float, whole: float | None, unit: str = "") -> None:
        share = "" if whole is None else f"{number / whole:.2%} of dense"
        totals.add_row(label, f"{number:,.0f}{unit}", share)

    row("parameters", counts["params"], None)
    at = f"  expected at keep rate {counts['keep_rate']:.4g}"
    row(at, counts["params_expected"], counts["params"])
    row("  of the sampled mask", counts["params_sampled"], counts["params"])
    row(f"maskable {counts['maskable']}", counts["channels"], None)
    row("  of the sampled mask", counts["channels_sampled"], counts["channels"])
    row("MACs, dense (forward, one image)", macs, None)
    row(at, counts["macs_expected"], macs)
    row("  of the sampled mask", counts["macs_sampled"], macs)
    row("FLOPs = 2 x MACs, dense", counts["flops"], None)
    row("activations held for backward, one image", counts["activation_bytes"], None, " bytes")
    row(
        "  of the sampled mask",
        counts["activation_bytes_sampled"],
        counts["activation_bytes"],
        " bytes",
    )
    console.print(totals)
    console.print(
        "One multiply-add = 1 MAC. Convolution and linear layers count, padding included."
    )

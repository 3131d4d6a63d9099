"""Settings of `minicst bench`, and what is timed: a network and a batch of images."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from minicst.backend import cpu_backend, get_backend
from minicst.data import Batch
from minicst.methods.completely_sparse import checked_budget
from minicst.models import ARCHITECTURES, NETWORKS, build
from minicst.nn import Network
from minicst.recipes import RECIPES
from minicst.sparse.expected import keep_rate_for

SHAPE = (32, 32, 3)
BUSY = 0.5  # processes that wanted a core, mean of the last minute: more spoils times
CLASSES = 10
Section = Literal["dense", "steps", "authors", "cut", "memory", "layers"]
PeerName = Literal["pytorch-nchw", "pytorch-channels-last", "jax"]
SHARES = (28.57, 19.33, 10.27, 4.94, 1.70)  # paper, Table 4, "FLOPs(%)"


@dataclass(frozen=True)
class BenchSettings:
    """Time dense and sparse training beside PyTorch and JAX, and beside what the machine can do."""

    networks: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--network"])] = (
        "vgg19",
        "resnet32",
        "resnet20",
    )
    """Networks that take images of 32x32x3."""
    width: float | None = None
    """Multiplies their hidden channels; by default as in the paper's tables: 2 for resnet32."""
    residual: Literal["tied", "independent"] = "tied"
    """Masks at residual adds."""
    shortcut: Literal["A", "B"] = "B"
    """ResNet shortcuts into a new stage: A pads with zero channels, B is a 1x1 convolution."""
    batch_size: int = 128
    """Images a step."""
    shares: tuple[float, ...] = SHARES
    """Shares of the dense MACs, in percent, at which Algorithm 1 runs; those of Table 4."""
    pairs: int = 5
    """Turns that each contestant takes; medians are reported, of ratios too."""
    only: tuple[Section, ...] = ("dense", "steps", "authors", "cut", "memory")
    """What is measured. dense: passes of the dense network; steps: Algorithm 1's whole step;
    authors: beside it the authors' way in PyTorch; cut: a cut network's passes beside PyTorch's on
    a network of the same widths; memory: peak bytes of a step; layers: see --layers."""
    layers: bool = False
    """Also time every layer and operation."""
    peers: tuple[PeerName, ...] = ("pytorch-nchw", "pytorch-channels-last", "jax")
    """Other frameworks that take turns with minicst, where they are installed."""
    torch_python: str = sys.executable
    """Interpreter that has PyTorch; where it has none, PyTorch's rows are left out."""
    jax_python: str = sys.executable
    """Interpreter that has JAX; where it has none, JAX's rows are left out."""
    threads: int | None = None
    """CPU threads for all; all cores by default."""
    seed: int = 0
    """Of images and masks."""
    json: bool = False
    """Print JSON."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def sections(self) -> tuple[str, ...]:
        """What is measured, `layers` included."""
        return (*self.only, "layers") if self.layers else self.only


@dataclass(frozen=True)
class Workload:
    """A network, its images, and the keep rates that are timed.

    Attributes:
        name: of the network.
        options: arguments of models.build.
        batch: synthetic images and labels.
        keep_rates: {share of the MACs in percent: keep rate}.
    """

    name: str
    options: dict[str, Any]
    batch: Batch
    keep_rates: dict[float, float]

    def build(self) -> Network:
        """Return a new network, always the same."""
        return build(**self.options)

    @property
    def label(self) -> str:
        """Name and width."""
        width = self.options["width"]
        return self.name if width == 1.0 else f"{self.name} x{width:g}"

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return len(self.batch.labels)


def workloads(settings: BenchSettings) -> list[Workload]:
    """Check the settings; return what is to be timed.

    Raises:
        ValueError: if a setting is impossible, before anything is measured.
    """
    if settings.pairs < 1 or settings.batch_size < 2:
        raise ValueError(
            f"--pairs {settings.pairs} --batch-size {settings.batch_size}: at least 1 pair of "
            "turns and, for batch norm, 2 images are needed"
        )
    if not settings.networks:
        raise ValueError(f"--networks names none: choose of {', '.join(NETWORKS)}")
    if settings.threads is not None and settings.threads < 1:
        raise ValueError(f"--threads {settings.threads}: at least 1 is needed")
    for option, python, wanted in (
        ("--torch-python", settings.torch_python, "pytorch"),
        ("--jax-python", settings.jax_python, "jax"),
    ):
        used = any(peer.startswith(wanted) for peer in settings.peers)
        if used and shutil.which(python) is None:
            raise ValueError(f"{option} {python}: there is no such program")
    for share in settings.shares:
        if not 0.0 < share <= 100.0:
            raise ValueError(f"--shares {share:g}: percentages of the MACs in (0, 100] are needed")
    rng = np.random.default_rng(settings.seed)
    images = rng.standard_normal((settings.batch_size, *SHAPE), np.float32)
    batch = Batch(0, images, rng.integers(0, CLASSES, settings.batch_size))
    return [_workload(settings, name, batch) for name in settings.networks]


def _workload(settings: BenchSettings, name: str, batch: Batch) -> Workload:
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown network '{name}': choose of {', '.join(NETWORKS)}")
    options: dict[str, Any] = {
        "name": name,
        "num_classes": CLASSES,
        "width": paper_width(name) if settings.width is None else settings.width,
        "residual": settings.residual,
        "shortcut": settings.shortcut if "shortcut" in ARCHITECTURES[name].takes else "B",
    }
    network = build(**options)
    network.shapes(SHAPE)  # refuses images that don't fit
    rates = {share: keep_rate_for(network, SHAPE, share / 100.0) for share in settings.shares}
    for rate in rates.values():
        checked_budget(network, rate)
    return Workload(name, options, batch, rates)


def paper_width(name: str) -> float:
    """Width of a network in the paper's tables (ResNet-32 is doubled there), 1 if it has none."""
    for recipe in RECIPES.values():
        if recipe.settings["network"] == name:
            return float(recipe.settings.get("width", 1.0))
    return 1.0


def use_threads(settings: BenchSettings) -> int:
    """Set the backend's threads; return their number."""
    get_backend("cpu", settings.threads)
    return cpu_backend().threads

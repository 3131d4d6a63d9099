"""Settings of `minicst bench`, and what is timed: a network and a batch of images."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from minicst.backend import Backend, cpu_backend, get_backend
from minicst.backend.cupy_convolution import WORKSPACE_MB
from minicst.data import Batch
from minicst.methods.base import on_device
from minicst.methods.completely_sparse import checked_budget
from minicst.models import ARCHITECTURES, NETWORKS, build
from minicst.nn import Network
from minicst.recipes import RECIPES
from minicst.sparse.expected import keep_rate_for

SHAPE = (32, 32, 3)
BUSY = 0.5  # processes that wanted a core, mean of the last minute: more spoils times
CLASSES = 10
Section = Literal["dense", "steps", "authors", "cut", "memory", "layers", "launches", "workspace"]
OF_A_GPU = ("launches", "workspace")
PeerName = Literal["pytorch-nchw", "pytorch-channels-last", "jax"]
SHARES = (28.57, 19.33, 10.27, 4.94, 1.70)  # paper, Table 4, "FLOPs(%)"
# Images a step at which a GPU's launches are timed. With two it has next to nothing to compute.
LAUNCH_BATCHES = (2, 32, 128, 256, 512)


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
    only: tuple[Section, ...] = (
        "dense",
        "steps",
        "authors",
        "cut",
        "memory",
        "launches",
        "workspace",
    )
    """What is measured. dense: passes of the dense network; steps: Algorithm 1's whole step;
    authors: beside it the authors' way in PyTorch; cut: a cut network's passes beside PyTorch's on
    a network of the same widths; memory: peak bytes of a step; layers: see --layers. On a GPU only:
    launches: whether launching kernels or computing takes the time, at several batch sizes;
    workspace: a step's time by the size of the column workspace."""
    layers: bool = False
    """Also time every layer and operation."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where minicst and PyTorch run."""
    precision: tuple[Literal["float32", "tf32"], ...] = ("float32",)
    """Of products on a GPU, minicst's and PyTorch's; with both, everything is timed in both."""
    workspace_mb: int = WORKSPACE_MB
    """GPU: most memory for the columns of a convolution."""
    repeats: int = 10
    """GPU: passes or steps of a turn, one after the other, after one that wakes it up."""
    launch_batches: tuple[int, ...] = LAUNCH_BATCHES
    """GPU: images a step at which launches are timed."""
    launch_share: float = 4.94
    """GPU: share of the dense MACs, in percent, at which Algorithm 1 runs there."""
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
        """What is measured on the device, `layers` included."""
        on_gpu = self.device == "cuda"
        chosen = tuple(section for section in self.only if on_gpu or section not in OF_A_GPU)
        return (*chosen, "layers") if self.layers else chosen


@dataclass(frozen=True)
class Workload:
    """A network, its images, and the keep rates that are timed.

    Attributes:
        name: of the network.
        options: arguments of models.build.
        batch: synthetic images and labels.
        keep_rates: {share of the MACs in percent: keep rate}.
        repeats: passes or steps of a turn, one after the other; their mean counts.
        launch_rate: keep rate at which launches are timed, where they are.
    """

    name: str
    options: dict[str, Any]
    batch: Batch
    keep_rates: dict[float, float]
    repeats: int = 1
    launch_rate: float = 1.0

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
        return int(self.batch.images.shape[0])

    def on_gpu(self, backend: Backend, repeats: int) -> Workload:
        """Return it with its images on a GPU, as PyTorch has them, and turns of so many passes."""
        return replace(self, batch=on_device(self.batch, backend, CLASSES), repeats=repeats)


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
    given = [("--shares", share) for share in settings.shares]
    for option, share in (*given, ("--launch-share", settings.launch_share)):
        if not 0.0 < share <= 100.0:
            raise ValueError(f"{option} {share:g}: percentages of the MACs in (0, 100] are needed")
    if not settings.precision:
        raise ValueError("--precision names none: choose float32, tf32 or both")
    if not settings.sections:
        raise ValueError(f"--only {' '.join(settings.only)}: nothing of it is of the CPU")
    if settings.repeats < 1:
        raise ValueError(f"--repeats {settings.repeats}: at least 1 is needed")
    if settings.device == "cuda" and min(settings.launch_batches, default=0) < 2:
        raise ValueError(
            f"--launch-batches {' '.join(map(str, settings.launch_batches))}: at least one size, "
            "and, for batch norm, 2 images each, are needed"
        )
    batch = random_batch(settings.batch_size, settings.seed)
    return [_workload(settings, name, batch) for name in settings.networks]


def random_batch(images: int, seed: int) -> Batch:
    """Return synthetic images and labels."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((images, *SHAPE), np.float32)
    return Batch(0, values, rng.integers(0, CLASSES, images))


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
    launch_rate = 1.0
    if set(OF_A_GPU) & set(settings.sections):
        launch_rate = keep_rate_for(network, SHAPE, settings.launch_share / 100.0)
    for rate in (*rates.values(), launch_rate):
        checked_budget(network, rate)
    return Workload(name, options, batch, rates, launch_rate=launch_rate)


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

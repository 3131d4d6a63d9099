"""Settings of a training run: one documented dataclass, which is the command line too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from minicst.methods.base import Hyper
from minicst.recipes import find_recipe

# Fields that each set the keep rate; those that say where and how a run is run, not what it is.
KEEP = {"keep_rate", "keep_macs", "keep_params"}
OUTSIDE = {
    "data_dir",
    "verify",
    "seed",
    "device",
    "full_model",
    "workspace_mb",
    "threads",
    "out",
    "resume",
    "debug",
}


@dataclass(frozen=True)
class TrainSettings:
    """Train a network; by default a small VGG on Fashion-MNIST images by Algorithm 1."""

    network: str = "vgg-small"
    """vgg-tiny, vgg-small, vgg11, vgg16, vgg19, resnet20, resnet32, resnet56, wrn-28-10, resnet50,
    mobilenetv1 or mlp."""
    data: str = "fashion"
    """In the package: fashion (28x28 grey, real), digits (8x8 grey, real), shapes32 (32x32 color,
    synthetic). Downloaded, or from --data-dir: cifar10, cifar100, mnist, fashion-mnist. From
    --data-dir only: folder (train/CLASS/*.jpg and val/CLASS/*.jpg, as ImageNet) and npz.
    VGG-11 to 19 and the CIFAR ResNets get smaller images zero-padded to 32x32."""
    data_dir: Path | None = None
    """Where the data set's files are already: its folder or the archive; for npz the file."""
    verify: bool = True
    """Check files against the published checksums and sizes."""
    limit: int | None = None
    """Train on the first so many training images only, as they come: classes not balanced. Of a
    folder, so many spread evenly over all."""
    test_limit: int | None = None
    """Evaluate on so many test images only, evenly spaced. All by default, but as many as --limit
    in the trial run of a recipe."""
    validation: float = 0.0
    """Share of the training images, in [0, 1), the same for every seed, that is held out and takes
    the place of the test images: for choosing settings."""
    image_size: int = 224
    """Side that the images of --data folder are cropped to."""
    recipe: str | None = None
    """Settings of a row of the paper's tables, by name: `minicst recipes` lists them. Whatever is
    given beside it wins."""
    method: str = "completely-sparse"
    """completely-sparse (Algorithm 1), ste or gumbel (keep_prob by the chain rule, at dense cost),
    dense, or the controls fixed-mask and narrow."""
    preset: str | None = None
    """paper (one-sided, no floor, no fine-tuning, Adam 12e-3 on keep_prob) or released-code
    (symmetric, two backward passes, best of 10 masks, fine-tuning, joint clipping at 3). A preset
    sets the defaults of these settings; whatever is given beside it wins."""
    keep_rate: float = 0.5
    """Share of the maskable channels kept on average: rho, in (0, 1]."""
    keep_macs: str | None = None
    """Instead of --keep-rate: share of the MACs, as 8.7%; finds the rate at which to expect it."""
    keep_params: str | None = None
    """The same for a share of the parameters."""
    budget_in: Literal["channels", "macs"] = "channels"
    """What keep_prob may spend: channels (the paper's), or multiply-adds of each channel's filters
    at dense input, of which it gets the share --keep-rate: an upper bound on the expected ones."""
    width: float = 1.0
    """Multiplies every hidden channel count."""
    residual: Literal["tied", "independent"] = "tied"
    """Masks at residual adds: one for a stage's stream, or one for every convolution."""
    shortcut: Literal["A", "B"] = "B"
    """ResNet shortcuts into a new stage: A pads with zero channels, B is a 1x1 convolution."""
    linear_masks: Literal["channels", "weights"] = "channels"
    """Masks of linear layers: one for a hidden neuron, or one for every weight, the classifier's
    too; each weight then counts as one entry of the budget, and products run sparse."""

    estimator: str = "vr-pge"
    """vr-pge (Algorithm 1), vr-pge-symmetric (about half the variance, same cost), vr-pge-multi
    (--n-masks forward passes), disarm or arm (an antithetic pair), pge (one forward pass,
    hopeless), pge-moving-average (one pass, earlier losses as baseline), or coin (a control without
    information)."""
    n_masks: int = 4
    """Masks of a step for vr-pge-multi, 2 to 26; each costs a forward pass."""
    baseline_decay: float = 0.9
    """Share of the old average in the baseline of pge-moving-average, in [0, 1)."""
    precondition_power: Annotated[float, tyro.conf.arg(aliases=["--alpha"])] = 0.5
    """alpha of the preconditioner (s (1 - s))^alpha, in [0, 1]. Adam hides it."""
    keep_prob_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of keep_prob; sgd where alpha or variance is studied."""
    keep_prob_lr: float = 0.1
    """Learning rate of keep_prob. Few steps need more than the paper's 12e-3."""
    keep_prob_schedule: Literal["constant", "step", "cosine"] = "cosine"
    """Schedule of keep_prob's learning rate, over the search."""
    keep_prob_floor: float = 0.0
    """keep_prob stays within [floor, 1 - floor]; 0 lets channels be decided for good."""
    resample_every: int = 1
    """Draw new masks every so many steps; between, sub-network a trains alone."""
    backward_masks: Literal[1, 2] = 1
    """Back-propagate through the first sub-network, or (as the released code) through both."""
    mask_position: Literal["after-norm", "filter"] = "after-norm"
    """after-norm: an absent channel is absent, networks are cut. filter: filters times 0/1 before
    batch norm, as in the paper's formula; beta leaks, and everything runs dense."""
    gumbel_temperature: float = 2 / 3
    """T of --method gumbel: m = sigmoid((logit s + logistic noise) / T), in (0, 1]."""
    gumbel_forward: Literal["soft", "hard"] = "soft"
    """Masks of --method gumbel's forward pass: soft, or rounded to 0 and 1 (backward is soft)."""
    final_mask: str = "sample"
    """Rule for the final network: sample (Algorithm 1), top-k, or best-of-10 (on training data)."""
    fine_tune: float = 0.0
    """Share of the epochs, at the end, that train the final sub-network alone, in [0, 1)."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of the weights."""
    lr: float = 0.1
    """Learning rate of the weights."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on live entries of all parameters."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """Schedule of the weights' learning rate."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate rises linearly, in [0, 1)."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in [0, 1)."""
    clip_norm: float = 0.0
    """Largest norm of all gradients together (weights and keep_prob); 0: no clipping."""

    epochs: int = 60
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step."""
    augment: Literal["none", "crop-flip", "resized-crop"] = "crop-flip"
    """Random crops and left-right flips (not for digits, mnist), or images as they are. Images of a
    folder get random-resized crops and flips by either name."""
    recalibration_batches: int = 16
    """Training batches over which batch norm's statistics are averaged for a final network."""
    dense_probes: int = 12
    """Number of dense steps (about) timed in between; 0: no saving in seconds."""
    planted: bool = False
    """Replace half of every group's channels by noise: the structure that is to be found."""
    controls: bool = False
    """Also train a fixed random mask and a uniformly narrow network of the same MACs."""

    seed: int = 0
    """Of weights, order, augmentation and masks."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where to train; auto: on a GPU where one is usable, else on the CPU."""
    full_model: Literal["device", "host", "disk"] = "device"
    """Where the full network is kept: with what trains, in the host's memory, or in files of the
    run's folder. Away from the device only sub-networks are on it, exchanged every --resample-every
    steps."""
    precision: Literal["float32", "tf32"] = "float32"
    """Of products on a GPU: tf32 rounds their operands to 10 bits of mantissa, and is faster."""
    workspace_mb: int = 256
    """GPU: most memory for the columns of a convolution; a layer that needs more runs in chunks."""
    threads: int | None = None
    """CPU threads; all cores by default. Results don't depend on it, bit for bit."""
    out: Path | None = None
    """Folder of the run, which must not exist yet; a new one under runs/ by default."""
    resume: Path | None = None
    """Go on with the run in this folder; all other settings come from it."""
    debug: bool = False
    """Show the traceback of an error."""

    def hyper(self) -> Hyper:
        """The numbers that the method needs."""
        known = {field.name for field in fields(Hyper)}
        return Hyper(**{key: value for key, value in asdict(self).items() if key in known})

    def as_json(self) -> dict[str, Any]:
        """Plain data for settings.json; `from_json` reads it."""
        plain = {
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(self).items()
        }
        if self.data_dir is not None:  # a run may be resumed from another folder
            plain["data_dir"] = str(self.data_dir.absolute())
        return plain

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainSettings:
        """Settings of as_json().

        Raises:
            ValueError: if a setting is unknown.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(data.keys() - known):
            raise ValueError(f"unknown setting '{unknown[0]}'")
        data = dict(data)
        for key in ("data_dir", "out", "resume"):
            data[key] = None if data.get(key) is None else Path(data[key])
        return cls(**data)

    @classmethod
    def of_preset(cls, preset: str | None, recipe: str | None = None, **changes: Any) -> Self:
        """Settings with a preset's and a recipe's values as defaults, and `changes` on top.

        Raises:
            ValueError: for an unknown preset or recipe.
        """
        defaults: dict[str, Any] = {}
        if recipe is not None:
            defaults = {"recipe": recipe, **find_recipe(recipe).settings}
            if KEEP & changes.keys():  # only one of them can set the keep rate
                defaults = {key: value for key, value in defaults.items() if key not in KEEP}
            preset = preset or defaults.get("preset")
        if preset is not None:
            if preset not in PRESETS:
                raise ValueError(f"unknown preset '{preset}': choose {' or '.join(PRESETS)}")
            defaults = {**PRESETS[preset], **defaults, "preset": preset}
        return cls(**{**defaults, **changes})

    def keep_by(self) -> tuple[str, Any]:
        """Name and value of the setting that sets the keep rate; a rate found from it is none."""
        given = ((key, getattr(self, key)) for key in ("keep_macs", "keep_params"))
        return next((pair for pair in given if pair[1] is not None), ("keep_rate", self.keep_rate))

    def of_recipe(self) -> dict[str, Any] | None:
        """Part of summary.json: the recipe's row, what was changed, whether the run is a trial.

        A trial is too short to be compared: fewer epochs, or a part of the images.
        """
        if self.recipe is None:
            return None
        recipe = find_recipe(self.recipe)
        whole = TrainSettings.of_preset(None, self.recipe)
        changed = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in OUTSIDE | KEEP
            and getattr(self, field.name) != getattr(whole, field.name)
        }
        if self.keep_by() != whole.keep_by():
            changed |= [self.keep_by()]
        return {
            "name": recipe.name,
            "where": recipe.where,
            "aim": recipe.aim,
            "paper": asdict(recipe.paper),
            "changed": changed,
            "epochs": whole.epochs,
            "trial": self.epochs < whole.epochs or self.limit is not None,
        }

    def check(self) -> None:
        """Check what needs no network.

        Raises:
            ValueError: names the setting, its value and the rule.
        """
        rules = [
            ("epochs", self.epochs >= 1, "at least 1"),
            ("test_limit", self.test_limit is None or self.test_limit >= 1, "at least 1"),
            ("validation", 0.0 <= self.validation < 1.0, "a share of the images in [0, 1)"),
            ("image_size", self.image_size >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 2, "at least 2 (batch norm needs two images)"),
            ("fine_tune", 0.0 <= self.fine_tune < 1.0, "a share of the epochs in [0, 1)"),
            ("keep_prob_floor", 0.0 <= self.keep_prob_floor < 0.5, "in [0, 0.5)"),
            ("keep_prob_lr", self.keep_prob_lr >= 0.0, "0 or more"),
            ("precondition_power", 0.0 <= self.precondition_power <= 1.0, "in [0, 1]"),
            ("resample_every", self.resample_every >= 1, "at least 1"),
            ("recalibration_batches", self.recalibration_batches >= 1, "at least 1"),
            ("dense_probes", self.dense_probes >= 0, "0 or more"),
            ("workspace_mb", self.workspace_mb >= 1, "at least 1"),
            ("threads", self.threads is None or self.threads >= 1, "at least 1"),
            ("seed", self.seed >= 0, "0 or more"),
            ("n_masks", 2 <= self.n_masks <= 26, "2 to 26"),
            ("baseline_decay", 0.0 <= self.baseline_decay < 1.0, "in [0, 1)"),
            ("label_smoothing", 0.0 <= self.label_smoothing < 1.0, "in [0, 1)"),
            ("warmup", 0.0 <= self.warmup < 1.0, "in [0, 1)"),
            ("clip_norm", self.clip_norm >= 0.0, "0 or more"),
        ]
        if self.recipe is not None:
            find_recipe(self.recipe)
        for name, holds, rule in rules:
            if not holds:
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} {getattr(self, name)}: it must be {rule}")
        if self.full_model != "device":
            if self.method != "completely-sparse":
                raise ValueError(
                    f"--full-model {self.full_model} is of --method completely-sparse: "
                    f"{self.method} needs the whole network on the device"
                )
            if self.controls:
                raise ValueError(
                    f"--full-model {self.full_model} can't be combined with --controls, which hold "
                    "their networks in memory"
                )
        if self.mask_position == "filter" and self.resample_every > 1:
            raise ValueError("--mask-position filter can't be combined with --resample-every > 1")
        if self.mask_position == "filter" and self.fine_tune > 0.0:
            raise ValueError("--mask-position filter can't be combined with --fine-tune")
        for name in ("gumbel_temperature", "gumbel_forward"):
            if self.method != "gumbel" and getattr(self, name) != getattr(TrainSettings, name):
                option = "--" + name.replace("_", "-")
                raise ValueError(f"{option} is of --method gumbel, not of {self.method}")
        if self.linear_masks == "weights" and self.method in ("ste", "gumbel"):
            raise ValueError(
                f"--linear-masks weights can't be combined with --method {self.method}, which "
                "masks channels: take --method completely-sparse"
            )
        if self.linear_masks == "weights" and self.planted:
            raise ValueError(
                "--linear-masks weights can't be combined with --planted: noise replaces channels"
            )
        if self.planted and (self.method == "narrow" or self.controls):
            raise ValueError("--planted has no narrow network of its own: leave out --controls")
        if self.estimator in ("pge", "pge-moving-average") and self.backward_masks == 2:
            raise ValueError(
                f"--estimator {self.estimator} runs one pass: --backward-masks 2 has no second one"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "estimator": "vr-pge",
        "keep_prob_optimizer": "adam",
        "keep_prob_lr": 12e-3,  # App. B
        "keep_prob_floor": 0.0,
        "fine_tune": 0.0,
        "final_mask": "sample",
    },
    "released-code": {
        "estimator": "vr-pge-symmetric",
        "keep_prob_optimizer": "adam",
        "keep_prob_lr": 12e-3,
        "backward_masks": 2,
        "clip_norm": 3.0,
        "final_mask": "best-of-10",
        "fine_tune": 40 / 340,  # 300 epochs of search, 40 of fine-tuning
    },
}

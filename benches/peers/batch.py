"""The meta-step file: one batch, one network state and the settings of one step, as `l2b meta-step` reads it.

Tensors (float32 unless said): parameters and running statistics under their PyTorch names, `momentum.NAME`,
`train.images` [n,C,H,W], `train.labels` [n] int64, `val.images` [m,C,H,W], `val.labels` [m] int64.
Metadata key `l2b`: the settings as JSON. Every arm and the engine start from the same file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from network import Architecture


class BadFile(Exception):
    """A file that is not what it should be; the text names the file, the key and what was expected."""


@dataclass(frozen=True)
class Settings:
    """What one step computes (METHOD 1.5, 2.4, 2.5); names as in the metadata, `lam` is `lambda`."""

    arch: Architecture
    norm: str  # batch | frozen
    mode: str  # momentum: v at theta - lambda (mu buf + wd theta) | plain: v at theta
    lam: float
    eta: float
    lr: float
    mu: float
    wd: float
    clip: float  # global norm; 0 = none
    weights: str = "org"  # org | softmax | sigmoid | hard
    temperature: float = 1.0

    @staticmethod
    def parse(text: str, where: str) -> Settings:
        """From the JSON of the metadata key `l2b`."""
        try:
            c = json.loads(text)
            if c["model"] != "preact_resnet18":
                raise BadFile(f"{where}: model `{c['model']}`; the peers know `preact_resnet18` only")
            arch = Architecture(c["width"], tuple(c.get("blocks", (2, 2, 2, 2))), c["in_channels"], c["image_size"],
                                c["num_classes"])
            numbers = (float(c[key]) for key in ("lambda", "eta", "lr", "mu", "wd", "clip"))
            settings = Settings(arch, c["norm"], c["mode"], *numbers, c.get("weights", "org"),
                                float(c.get("temperature", 1.0)))
        except (KeyError, TypeError, ValueError) as error:
            raise BadFile(f"{where}: metadata `l2b`: {type(error).__name__}: {error}") from error
        for key, value, allowed in (("norm", settings.norm, ("batch", "frozen")),
                                    ("mode", settings.mode, ("plain", "momentum")),
                                    ("weights", settings.weights, ("org", "softmax", "sigmoid", "hard"))):
            if value not in allowed:
                raise BadFile(f"{where}: metadata `l2b`, key `{key}`: `{value}` is none of {', '.join(allowed)}")
        return settings

    def to_json(self) -> str:
        """The metadata value that `parse` reads."""
        a = self.arch
        return json.dumps({
            "model": "preact_resnet18", "width": a.width, "blocks": a.blocks, "in_channels": a.in_channels,
            "image_size": a.image_size, "num_classes": a.num_classes, "norm": self.norm, "mode": self.mode,
            "lambda": self.lam, "eta": self.eta, "lr": self.lr, "mu": self.mu, "wd": self.wd, "clip": self.clip,
            "weights": self.weights, "temperature": self.temperature})


@dataclass
class Batch:
    """Everything a meta-step file holds."""

    settings: Settings
    params: dict[str, Tensor]
    running: dict[str, Tensor]
    momentum: dict[str, Tensor]
    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor

    @property
    def n(self) -> int:
        return len(self.train_labels)

    @property
    def m(self) -> int:
        return len(self.val_labels)

    def save(self, path: Path) -> None:
        """Writes the file; the bytes depend on the contents only."""
        tensors = {**self.params, **self.running, **{f"momentum.{k}": t for k, t in self.momentum.items()},
                   "train.images": self.train_images, "train.labels": self.train_labels,
                   "val.images": self.val_images, "val.labels": self.val_labels}
        save_file({k: t.detach().contiguous() for k, t in tensors.items()}, path, {"l2b": self.settings.to_json()})

    @staticmethod
    def load(path: Path) -> Batch:
        """Reads the file and checks every shape."""
        tensors, metadata = read(path)
        if "l2b" not in metadata:
            raise BadFile(f"{path}: no metadata key `l2b`: not a meta-step input file")
        settings = Settings.parse(metadata["l2b"], str(path))
        arch = settings.arch

        def take(name: str, shape: tuple[int, ...] | None) -> Tensor:
            if name not in tensors:
                raise BadFile(f"{path}: no tensor `{name}`")
            found = tuple(tensors[name].shape)
            if shape is not None and found != shape:
                raise BadFile(f"{path}: tensor `{name}`: expected {shape}, found {found}")
            return tensors[name]

        shapes = arch.parameters()
        images = (arch.in_channels, arch.image_size, arch.image_size)
        labels = {kind: take(f"{kind}.labels", None) for kind in ("train", "val")}
        return Batch(
            settings,
            {name: take(name, shape) for name, shape in shapes.items()},
            {name: take(name, shape) for name, shape in arch.running().items()},
            {name: take(f"momentum.{name}", shape) for name, shape in shapes.items()},
            take("train.images", (len(labels["train"]), *images)), labels["train"],
            take("val.images", (len(labels["val"]), *images)), labels["val"])


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BadFile(f"{path}: {error}") from error


def write_output(path: Path, output: dict[str, Tensor]) -> None:
    """An output file under the names of `l2b meta-step --output`."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in output.items()}, path)

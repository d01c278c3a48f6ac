"""Makes a meta-step input file: a partly trained network and a fresh noisy batch, of any size.

Images are either those of a dataset folder (`dataset.toml` with safetensors shards), resized, or synthetic: a smooth
pattern per class with its own brightness and pink noise, normalised to mean 0 and deviation 1. A few ordinary training
steps on other images of the same kind come first, so that weights, momentum, running statistics and predictions are
those of training, never zeros.
"""

from __future__ import annotations

import argparse
import math
import tomllib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from batch import BadFile, Batch, Settings, read
from closed_form import ClosedForm
from network import Architecture
from step import State

Draw = Callable[[int], tuple[Tensor, Tensor]]
"""count -> (images [count,C,H,W], clean labels [count])"""


def synthetic(arch: Architecture, rng: torch.Generator) -> Draw:
    """Class patterns plus noise with a 1/f spectrum, as natural images have."""
    size = arch.image_size
    coarse = torch.randn(arch.num_classes, arch.in_channels, 4, 4, generator=rng)
    patterns = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)
    frequency = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(size), torch.fft.rfftfreq(size), indexing="ij"))
    pink = 1 / frequency.clamp(min=1 / size)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(arch.num_classes, (count,), generator=rng)
        shape = (count, arch.in_channels, size, size)
        noise = torch.fft.irfft2(torch.fft.rfft2(torch.randn(shape, generator=rng)) * pink, s=(size, size))
        gain = torch.empty(count, 1, 1, 1).uniform_(0.5, 1.2, generator=rng)
        images = gain * patterns[labels] + 0.8 * noise / noise.std()
        return (images - images.mean()) / images.std(), labels
    return draw


def from_dataset(folder: Path, arch: Architecture, rng: torch.Generator) -> Draw:
    """Images of the `train` split, resized; drawn with replacement."""
    try:
        about = tomllib.loads((folder / "dataset.toml").read_text())
        shards = [read(folder / shard["file"])[0] for shard in about["splits"]["train"]]
        mean, std = (torch.tensor(about[key])[:, None, None] for key in ("mean", "std"))
        images = torch.cat([shard["images"] for shard in shards])  # u8 [N,H,W,C]
        labels = torch.cat([shard["labels"] for shard in shards])
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise BadFile(f"{folder}: not a dataset folder with a train split: {type(error).__name__}: {error}") from error
    if images.shape[3] != arch.in_channels or int(labels.max()) >= arch.num_classes:
        raise BadFile(f"{folder}: {images.shape[3]} channels, labels up to {int(labels.max())}; "
                      f"asked for {arch.in_channels} channels and {arch.num_classes} classes")

    def draw(count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(images), (count,), generator=rng)
        x = (images[chosen].permute(0, 3, 1, 2) / 255 - mean) / std
        size = (arch.image_size, arch.image_size)
        return F.interpolate(x, size, mode="bilinear", align_corners=False), labels[chosen]
    return draw


def noisy(labels: Tensor, classes: int, rng: torch.Generator) -> Tensor:
    """40 % symmetric noise, the matrix form of METHOD 3.1: the given label may survive."""
    other = torch.randint(classes, labels.shape, generator=rng)
    return torch.where(torch.rand(labels.shape, generator=rng) < 0.4, other, labels)


def make(settings: Settings, n: int, m: int, seed: int = 0, steps: int = 10, dataset: Path | None = None,
         device: str = "cpu") -> Batch:
    """A batch of n train and m meta images for the network of `settings`, after `steps` steps of plain training."""
    arch, rng = settings.arch, torch.Generator().manual_seed(seed)
    draw = synthetic(arch, rng) if dataset is None else from_dataset(dataset, arch, rng)
    params: dict[str, Tensor] = {}
    for name, shape in arch.parameters().items():
        if ".bn" in name:  # around 1 and 0, as after some training
            t = torch.empty(shape).uniform_(0.8, 1.2, generator=rng) if name.endswith("weight") else \
                0.1 * torch.randn(shape, generator=rng)
        else:  # PyTorch's own initialisation: U(-1/sqrt(fan in), 1/sqrt(fan in))
            bound = 1 / math.sqrt(math.prod(arch.parameters()[name.replace(".bias", ".weight")][1:]))
            t = torch.empty(shape).uniform_(-bound, bound, generator=rng)
        params[name] = t
    running = {name: (torch.ones if name.endswith("var") else torch.zeros)(shape)
               for name, shape in arch.running().items()}

    x, clean = draw(n)
    val_x, val_y = draw(m)
    batch = Batch(settings, params, running, {k: torch.zeros_like(t) for k, t in params.items()},
                  x, noisy(clean, arch.num_classes, rng), val_x, val_y)
    if steps == 0:
        return batch
    warm = Batch(Settings(arch, "batch", "plain", 0.0, 1.0, 0.05, settings.mu, settings.wd, 1.0),
                 params, running, batch.momentum, *draw(min(n, 64)), val_x, val_y)
    state = State(warm, torch.device(device), torch.float32, channels_last=True)
    arm = ClosedForm(state, torch.float32, compiled=False, joined=False)
    for _ in range(steps):
        x, clean = draw(len(state.y))
        state.x.copy_(x)
        state.y.copy_(noisy(clean, arch.num_classes, rng))
        arm.step("ce")
    for mine, trained in ((batch.params, state.params), (batch.running, state.running),
                          (batch.momentum, state.momentum)):
        mine.update({name: t.detach().cpu().contiguous() for name, t in trained.items()})
    return batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes and settings of the batch; shared with `compare.py`."""
    parser.add_argument("--n", type=int, default=32, help="train images (default 32)")
    parser.add_argument("--m", type=int, help="meta images (default n)")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--in-channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (default 64)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 2, 2, 2], help="blocks per stage")
    parser.add_argument("--mode", choices=["momentum", "plain"], default="momentum", help="where v is taken")
    parser.add_argument("--norm", choices=["batch", "frozen"], default="batch")
    parser.add_argument("--weights", choices=["org", "softmax", "sigmoid", "hard"], default="org")
    parser.add_argument("--clip", type=float, default=0.25, help="global gradient norm, 0 = none (default 0.25)")
    parser.add_argument("--lr", type=float, default=0.05, help="step size, real and virtual (default 0.05)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-steps", type=int, default=10, help="plain steps before the batch (default 10)")
    parser.add_argument("--dataset", type=Path, help="folder with dataset.toml; synthetic images without it")


def from_arguments(args: argparse.Namespace, n: int, m: int, device: str) -> Batch:
    """The batch that the arguments describe."""
    if min(n, m) < 2:
        raise BadFile("n and m must be 2 or more: batch statistics of a single 1x1 map do not exist in PyTorch")
    arch = Architecture(args.width, tuple(args.blocks), args.in_channels, args.image_size, args.classes)
    settings = Settings(arch, args.norm, args.mode, args.lr, 1.0, args.lr, 0.9, 5e-4, args.clip, args.weights)
    return make(settings, n, m, args.seed, args.train_steps, args.dataset, device)

"""PreActResNet-18, variant A (METHOD 4.1: no batch norm after the stem, none before the pool), as a pure function.

The network is a function of a dictionary of parameters under PyTorch's names, so that autograd can differentiate
through parameters that are themselves results (double backprop), and so that each arm chooses how it normalises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
RUNNING_MOMENTUM = 0.1

Tensors = dict[str, Tensor]
Norm = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""(name, x [N,C,H,W], gamma [C], beta [C]) -> normalised x"""


@dataclass(frozen=True)
class Architecture:
    """Sizes of the network; 64 and (2, 2, 2, 2) are ResNet-18's."""

    width: int
    blocks: tuple[int, ...]
    in_channels: int
    image_size: int
    num_classes: int

    def residual_blocks(self) -> Iterator[tuple[str, int, int, int]]:
        """(name, channels in, channels out, stride) in order."""
        inner = self.width
        for stage, count in enumerate(self.blocks):
            outer = self.width << stage
            for index in range(count):
                yield f"layer{stage + 1}.{index}", inner, outer, 2 if stage > 0 and index == 0 else 1
                inner = outer

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Shapes under PyTorch's names, in order."""
        shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (self.width, self.in_channels, 3, 3)}
        outer = self.width
        for name, inner, outer, stride in self.residual_blocks():
            shapes |= {f"{name}.bn1.weight": (inner,), f"{name}.bn1.bias": (inner,),
                       f"{name}.conv1.weight": (outer, inner, 3, 3),
                       f"{name}.bn2.weight": (outer,), f"{name}.bn2.bias": (outer,),
                       f"{name}.conv2.weight": (outer, outer, 3, 3)}
            if has_projection(inner, outer, stride):
                shapes[f"{name}.shortcut.0.weight"] = (outer, inner, 1, 1)
        return shapes | {"linear.weight": (self.num_classes, outer), "linear.bias": (self.num_classes,)}

    def running(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the running statistics."""
        return {name.replace(".weight", f".{kind}"): shape
                for name, shape in self.parameters().items() if ".bn" in name and name.endswith(".weight")
                for kind in ("running_mean", "running_var")}


def has_projection(inner: int, outer: int, stride: int) -> bool:
    """Whether the shortcut is a 1x1 convolution of the pre-activated tensor rather than the identity."""
    return stride != 1 or inner != outer


def batch_statistics(running: Tensors | None = None) -> Norm:
    """Batch norm by the batch's own statistics; updates `running` in place where given (METHOD 2.2)."""
    def norm(name: str, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        if running is None:
            return F.batch_norm(x, None, None, gamma, beta, True, RUNNING_MOMENTUM, EPS)
        mean, var = running[f"{name}.running_mean"], running[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, gamma, beta, True, RUNNING_MOMENTUM, EPS)
    return norm


def frozen_statistics(running: Tensors) -> Norm:
    """Batch norm by the running statistics, as constants."""
    def norm(name: str, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        mean, var = running[f"{name}.running_mean"], running[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, gamma, beta, False, 0.0, EPS)
    return norm


def logits(p: Tensors, x: Tensor, arch: Architecture, norm: Norm, dtype: torch.dtype | None = None) -> Tensor:
    """Logits [N,classes] of images [N,C,H,W].

    `dtype`: convolutions and activations in this type, pool and head in the parameters' own. None leaves the types to
    the caller (and to autocast).
    """
    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = p[f"{name}.weight"]
        return F.conv2d(x, weight if dtype is None else weight.to(dtype), None, stride, weight.shape[2] // 2)

    def pre_activation(x: Tensor, name: str) -> Tensor:
        return F.relu(norm(name, x, p[f"{name}.weight"], p[f"{name}.bias"]))

    x = conv(x if dtype is None else x.to(dtype), "conv1")
    for name, inner, outer, stride in arch.residual_blocks():
        o = pre_activation(x, f"{name}.bn1")
        skip = conv(o, f"{name}.shortcut.0", stride) if has_projection(inner, outer, stride) else x
        y = conv(o, f"{name}.conv1", stride)
        x = conv(pre_activation(y, f"{name}.bn2"), f"{name}.conv2") + skip
    head = p["linear.weight"]
    return F.linear((x if dtype is None else x.to(head.dtype)).mean((2, 3)), head, p["linear.bias"])

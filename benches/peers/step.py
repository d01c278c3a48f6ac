"""What every arm shares: the state on the device, weights, clipping, the real update (METHOD 1.5, 2.4, 2.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from batch import Batch, Settings
from network import Norm, Tensors, batch_statistics, frozen_statistics

GUARD = 1e-10
OBJECTIVES = ("ce", "l2rw", "l2b")


class State:
    """Parameters, momentum, running statistics and the batch, on one device in one type and memory format."""

    def __init__(self, batch: Batch, device: torch.device, dtype: torch.dtype, channels_last: bool) -> None:
        self.settings: Settings = batch.settings
        self.source = batch

        def place(t: Tensor) -> Tensor:
            t = t.to(device, dtype if t.is_floating_point() else None, copy=True)
            return t.contiguous(memory_format=torch.channels_last) if channels_last and t.dim() == 4 else t

        self.params: Tensors = {k: place(t).requires_grad_() for k, t in batch.params.items()}
        self.momentum: Tensors = {k: place(t) for k, t in batch.momentum.items()}
        self.running: Tensors = {k: place(t) for k, t in batch.running.items()}
        self.x, self.y = place(batch.train_images), place(batch.train_labels)
        self.val_x, self.val_y = place(batch.val_images), place(batch.val_labels)

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the state in the file."""
        for own, source in ((self.params, self.source.params), (self.momentum, self.source.momentum),
                            (self.running, self.source.running)):
            for name, t in own.items():
                t.copy_(source[name])

    def norm(self, update: bool) -> Norm:
        """How a pass normalises. Meta passes never touch the running statistics (METHOD 2.2)."""
        if self.settings.norm == "frozen":
            return frozen_statistics(self.running)
        return batch_statistics(self.running if update else None)

    @torch.no_grad()
    def look_ahead(self) -> list[Tensor]:
        """theta_hat_0: the virtual step at zero weights, theta - lambda (mu buf + wd theta); theta in plain mode."""
        s, params = self.settings, list(self.params.values())
        if s.mode == "plain":
            return params
        hat = torch._foreach_mul(params, 1 - s.lam * s.wd)
        torch._foreach_add_(hat, list(self.momentum.values()), alpha=-s.lam * s.mu)
        return [t.requires_grad_() for t in hat]

    @torch.no_grad()
    def update(self, grads: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Clips by the global norm and does one SGD step: the fused kernel, no read-back.

        buf = mu buf + c g + wd theta; theta -= lr buf; c = min(1, clip / (|g| + 1e-6)). Returns the clipped gradients
        as `clipped.NAME` and c as `factor`.
        """
        s, params = self.settings, list(self.params.values())
        # The fused kernels want gradients strided like the parameters; 1x1 kernels sometimes are not.
        same = [g if g.stride() == p.stride() else torch.empty_like(p).copy_(g) for g, p in zip(grads, params)]
        factor = torch.ones((), dtype=same[0].dtype, device=same[0].device)
        if s.clip > 0:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(same)))
            factor = (s.clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(same, factor)
        torch._fused_sgd_(params, same, list(self.momentum.values()), weight_decay=s.wd, momentum=s.mu, lr=s.lr,
                          dampening=0.0, nesterov=False, maximize=False, is_first_step=False)
        return {"factor": factor} | {f"clipped.{k}": g for k, g in zip(self.params, same)}


def rectify(raw: Tensor, s: Settings) -> Tensor:
    """Normalised weights from the raw ones, jointly over all entries of `raw` (METHOD 2.4)."""
    if s.weights == "org":
        w = raw.clamp(min=0)
        return w / (w.sum() + GUARD)
    if s.weights == "softmax":
        return torch.softmax(raw.flatten() / s.temperature, 0).view_as(raw)
    if s.weights == "sigmoid":
        w = torch.sigmoid(raw)
        return w / w.sum()
    w = torch.softmax(raw.flatten(), 0).view_as(raw)
    return torch.where(w <= s.temperature, 0.0, w)


def losses(z: Tensor, labels: Tensor) -> Tensor:
    """Per-sample cross entropy [n]."""
    return F.cross_entropy(z, labels, reduction="none")


def output(state: State, result: dict[str, Tensor]) -> Tensors:
    """The tensors of an `l2b meta-step` output file, from an arm's result and the state after its step."""
    factor = result["factor"]
    out = {name: t for name, t in result.items() if "." not in name and name != "factor"}
    out |= {name.replace("clipped.", "grad."): t / factor for name, t in result.items() if name.startswith("clipped.")}
    out |= {f"param.{k}": t for k, t in state.params.items()} | {f"momentum.{k}": t for k, t in state.momentum.items()}
    if state.settings.norm == "batch":
        out |= {f"running.{k}": t for k, t in state.running.items()}
    return out

"""Forward and tangent of the network in one pass, by hand (METHOD 1.4, tangent rules).

conv: ty = conv(tx, W) + conv(x, V). Batch norm: with x_hat = (x - mean) s,
t(x_hat) = s (tx - mean(tx) - x_hat mean(tx x_hat)), ty = gamma t(x_hat) + V_gamma x_hat + V_beta. The Jacobian of
x -> x_hat is symmetric per channel, so gamma t(x_hat) is batch norm's own backward applied to tx: one library kernel.
ReLU: tx where the primal output is positive.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from network import EPS, RUNNING_MOMENTUM, Architecture, Tensors, has_projection

aten = torch.ops.aten


def dual_logits(p: Tensors, v: Tensors, running: Tensors, x: Tensor, arch: Architecture, frozen: bool,
                dtype: torch.dtype, joined: bool) -> tuple[Tensor, Tensor]:
    """(z, tz) [N,classes]: logits at p, with autograd, and their derivative along v, without.

    `joined`: the two convolutions of the tangent as one with twice the input channels, conv([tx, x], [W, V]).
    Updates `running` in place unless `frozen`.
    """
    def conv(x: Tensor, tx: Tensor | None, name: str, stride: int = 1) -> tuple[Tensor, Tensor]:
        w, w_v = p[f"{name}.weight"].to(dtype), v[f"{name}.weight"].to(dtype)
        pad = w.shape[2] // 2
        y = F.conv2d(x, w, None, stride, pad)
        x, w = x.detach(), w.detach()
        if tx is None:
            return y, F.conv2d(x, w_v, None, stride, pad)
        if joined:
            return y, F.conv2d(torch.cat([tx, x], 1), torch.cat([w, w_v], 1), None, stride, pad)
        return y, F.conv2d(tx, w, None, stride, pad) + F.conv2d(x, w_v, None, stride, pad)

    def pre_activation(x: Tensor, tx: Tensor, name: str) -> tuple[Tensor, Tensor]:
        gamma, beta = p[f"{name}.weight"], p[f"{name}.bias"]
        mean, var = running[f"{name}.running_mean"], running[f"{name}.running_var"]
        if frozen:
            s = torch.rsqrt(var + EPS)
            y = F.relu(F.batch_norm(x, mean, var, gamma, beta, False, 0.0, EPS))
            ty = channels(gamma.detach() * s) * tx
        else:
            y, mean, s = torch.native_batch_norm(x, gamma, beta, mean, var, True, RUNNING_MOMENTUM, EPS)
            y, mean, s = F.relu(y), mean.detach(), s.detach()
            ty, _, _ = aten.native_batch_norm_backward(
                tx, x.detach(), gamma.detach(), None, None, mean, s, True, EPS, [True, False, False])
        slope = s * v[f"{name}.weight"]
        ty = ty + (channels(slope) * x.detach() + channels(v[f"{name}.bias"] - slope * mean))
        return y, aten.threshold_backward(ty.to(dtype), y.detach(), 0)

    x, tx = conv(x.to(dtype), None, "conv1")
    for name, inner, outer, stride in arch.residual_blocks():
        o, to = pre_activation(x, tx, f"{name}.bn1")
        if has_projection(inner, outer, stride):
            x, tx = conv(o, to, f"{name}.shortcut.0", stride)
        y, ty = conv(o, to, f"{name}.conv1", stride)
        o, to = pre_activation(y, ty, f"{name}.bn2")
        y, ty = conv(o, to, f"{name}.conv2")
        x, tx = y + x, ty + tx
    head, head_v = p["linear.weight"], v["linear.weight"]
    pooled, t_pooled = x.to(head.dtype).mean((2, 3)), tx.to(head.dtype).mean((2, 3))
    tz = F.linear(t_pooled, head.detach()) + F.linear(pooled.detach(), head_v, v["linear.bias"])
    return F.linear(pooled, head, p["linear.bias"]), tz


def channels(t: Tensor) -> Tensor:
    """[C] shaped to multiply [N,C,H,W]."""
    return t[:, None, None]

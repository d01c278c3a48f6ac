"""The best PyTorch closed form (METHOD 1.4, 1.5): no double backprop, 5 + 3 m/n forward-equivalents a step.

v = gradient of the meta loss at theta_hat_0; one dual pass of the train batch gives logits z and their tangent tz
along v; alpha_i = eta lambda (p_i - e_y) . tz_i, beta likewise with the pseudo-label; one weighted backward; SGD.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from network import Tensors, batch_statistics, frozen_statistics, logits
from step import State, losses, rectify
from tangent import dual_logits


class ClosedForm:
    """Both passes are pure functions, compiled or not; `joined`: see `tangent.dual_logits`."""

    def __init__(self, state: State, dtype: torch.dtype, compiled: bool, joined: bool,
                 compile_mode: str = "default") -> None:
        self.state = state
        st, s = state, state.settings
        names = list(state.params)

        def loss(params: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            z = logits(dict(zip(names, params)), x, s.arch, st.norm(update=False), dtype)
            return losses(z, y).mean()

        def train(params: list[Tensor], running: Tensors, x: Tensor) -> Tensor:
            norm = frozen_statistics(running) if s.norm == "frozen" else batch_statistics(running)
            return logits(dict(zip(names, params)), x, s.arch, norm, dtype)

        def dual(params: list[Tensor], v: tuple[Tensor, ...], running: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
            return dual_logits(dict(zip(names, params)), dict(zip(names, v)), running, x, s.arch, s.norm == "frozen",
                               dtype, joined)

        def wrap(f: Callable) -> Callable:
            return torch.compile(f, mode=compile_mode, dynamic=False) if compiled else f

        self.loss, self.train, self.dual = wrap(loss), wrap(train), wrap(dual)

    def step(self, objective: str) -> dict[str, Tensor]:
        """One step in place; returns what the step computed."""
        st = self.state
        params = list(st.params.values())
        if objective == "ce":
            z = self.train(params, st.running, st.x)
            slope = (z.detach().softmax(1) - F.one_hot(st.y, z.shape[1])) / len(z)
            return {"logits": z.detach()} | st.update(torch.autograd.grad(z, params, slope))
        hat = st.look_ahead()
        val_loss = self.loss(hat, st.val_x, st.val_y)
        v = torch.autograd.grad(val_loss, hat)
        z, tz = self.dual(params, v, st.running, st.x)
        slope, result = self._weighted(z.detach(), tz, rows=1 if objective == "l2rw" else 2)
        result["val_loss"] = val_loss.detach()[None]
        return result | st.update(torch.autograd.grad(z, params, slope))

    @torch.no_grad()
    def _weighted(self, z: Tensor, tz: Tensor, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        """d loss / d z [n,classes] of the weighted loss, with the weights, from logits and their tangent."""
        s, y = self.state.settings, self.state.y
        log_p = z.log_softmax(1)
        pseudo = z.argmax(1)
        labels = torch.stack([y, pseudo][:rows])  # [rows,n]
        residual = log_p.exp() - F.one_hot(labels, z.shape[1])  # [rows,n,classes]
        raw = s.eta * s.lam * (residual * tz).sum(2)
        weights = rectify(raw, s)
        cost = -log_p.gather(1, labels.T).T
        result = {"logits": z, "pseudo_labels": pseudo, "loss_real": cost[0], "loss": (weights * cost).sum()[None]}
        for name, row, normal in zip(("alpha", "beta"), raw, weights):
            result |= {f"{name}_raw": row, name: normal}
        return (weights[:, :, None] * residual).sum(0), result

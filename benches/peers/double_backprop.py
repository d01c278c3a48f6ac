"""The published way (METHOD 2.1): real double backprop through a functional virtual step at zero weights."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from network import logits
from step import State, losses, rectify


class DoubleBackprop:
    """alpha, beta = -eta d(meta loss at theta_hat(alpha, beta)) / d(alpha, beta) at zero (METHOD 1.2, eq 5-7)."""

    def __init__(self, state: State, autocast: torch.dtype | None = None) -> None:
        self.state = state
        self.autocast = autocast

    def _mixed(self) -> AbstractContextManager:
        if self.autocast is None:
            return nullcontext()
        # No cache: a cast must not outlive the step, and a graph capture must contain it.
        return torch.autocast(self.state.x.device.type, self.autocast, cache_enabled=False)

    def _logits(self, params: dict[str, Tensor], x: Tensor, update: bool) -> Tensor:
        with self._mixed():
            z = logits(params, x, self.state.settings.arch, self.state.norm(update))
        return z.float() if self.autocast else z

    def step(self, objective: str) -> dict[str, Tensor]:
        """One step in place; returns what the step computed."""
        st, params = self.state, self.state.params
        if objective == "ce":
            z = self._logits(params, st.x, update=True)
            loss = losses(z, st.y).mean()
            return {"logits": z.detach()} | st.update(torch.autograd.grad(loss, list(params.values())))
        raw, result = self._weights(rows=1 if objective == "l2rw" else 2)
        weights = rectify(raw, st.settings)
        z = self._logits(params, st.x, update=True)  # the published way runs the train batch a second time
        cost = torch.stack([losses(z, labels) for labels in (st.y, z.detach().argmax(1))[:len(raw)]])
        loss = (weights * cost).sum()
        result |= {"logits": z.detach(), "loss": loss.detach()[None]}
        for name, row, normal in zip(("alpha", "beta"), raw, weights):
            result |= {f"{name}_raw": row, name: normal}
        return result | st.update(torch.autograd.grad(loss, list(params.values())))

    def _weights(self, rows: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Raw weights [rows,n]: virtual step with create_graph, meta loss, gradient w.r.t. the weights."""
        st, s, params = self.state, self.state.settings, self.state.params
        z = self._logits(params, st.x, update=False)
        pseudo = z.detach().argmax(1)
        cost = torch.stack([losses(z, labels) for labels in (st.y, pseudo)[:rows]])
        zero = torch.zeros_like(cost, requires_grad=True)
        grads = torch.autograd.grad((zero * cost).sum(), list(params.values()), create_graph=True)
        hat = {}
        for (name, w), g in zip(params.items(), grads):
            d = g if s.mode == "plain" else g + (s.mu * st.momentum[name] + s.wd * w).detach()
            hat[name] = w.detach() - s.lam * d
        val_loss = losses(self._logits(hat, st.val_x, update=False), st.val_y).mean()
        (slope,) = torch.autograd.grad(val_loss, zero)
        return -s.eta * slope, {"pseudo_labels": pseudo, "val_loss": val_loss.detach()[None],
                                "loss_real": cost[0].detach()}

"""Compares an output file with the f64 reference: an arm that fails is not timed.

Reference: double backprop in float64. Tolerances are by precision, on whole tensors taken as one vector:

| | f64 | f32 | tf32 | bf16 |
|---|---|---|---|---|
| alpha, beta: relative L2 error, cosine | 1e-9, 1 - 1e-9 | 2e-3, .99999 | 1e-2, .9995 | 5e-2, .995 |
| gradient, update, running statistics | 1e-9, 1 - 1e-9 | 1e-2, .9999 | 1e-1, .995 | 3e-1, .97 |

f32 alone gives 1e-4 and 1e-3 at full size: a ReLU mask that flips moves a whole term, and the gradient of the first
layers passes through all of them. The other columns follow from the 24, 11 and 8 bits of a product's operands.

The update is compared (parameters after minus before), not the parameters, in which an error would drown. beta is
compared where the pseudo-labels agree; more than `FLIPS` of them differing fails.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from batch import Batch
from double_backprop import DoubleBackprop
from step import State, output

EXACT = (1e-9, 1 - 1e-9)
"""Largest relative error, smallest cosine."""
WEIGHTS = {"f64": EXACT, "f32": (2e-3, 0.99999), "tf32": (1e-2, 0.9995), "bf16": (5e-2, 0.995)}
TENSORS = {"f64": EXACT, "f32": (1e-2, 0.9999), "tf32": (1e-1, 0.995), "bf16": (3e-1, 0.97)}
PER_SAMPLE = ("alpha_raw", "beta_raw", "alpha", "beta")
FLIPS = {"f64": 0.0, "f32": 0.0, "tf32": 0.02, "bf16": 0.05}
"""Largest share of pseudo-labels that may differ; one sample may, except in f64 and f32."""


@dataclass
class Comparison:
    """One quantity against the reference."""

    quantity: str
    relative: float
    cosine: float
    passed: bool


@dataclass
class Report:
    """All quantities of one arm; `flips` are pseudo-labels that differ."""

    comparisons: list[Comparison]
    flips: int
    passed: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        parts = [f"{c.quantity} {c.relative:.1e} ({c.cosine:.6f}){'' if c.passed else ' FAILS'}"
                 for c in self.comparisons]
        return ", ".join(parts) + f", {self.flips} pseudo-labels differ" + ("" if self.passed else ": FAILS")


def reference(batch: Batch, objective: str, device: str, threads: int | None = None) -> dict[str, Tensor]:
    """One step by double backprop in float64; tensors on the CPU, named as in a meta-step output file."""
    if threads:
        torch.set_num_threads(threads)
    state = State(batch, torch.device(device), torch.float64, channels_last=False)
    out = output(state, DoubleBackprop(state).step(objective))
    return {name: t.detach().cpu() for name, t in out.items()}


def compare(batch: Batch, got: dict[str, Tensor], want: dict[str, Tensor], precision: str) -> Report:
    """alpha, beta, gradient and update of `got` against the reference."""
    comparisons: list[Comparison] = []

    def add(quantity: str, mine: Tensor, theirs: Tensor) -> None:
        largest, smallest = (WEIGHTS if quantity in PER_SAMPLE else TENSORS)[precision]
        mine, theirs = mine.detach().double(), theirs.detach().double()
        size = theirs.norm()
        relative = float((mine - theirs).norm() / size) if size > 0 else float(mine.norm())
        if size > 0:
            cosine = float(mine @ theirs / (mine.norm() * size).clamp(min=1e-300))
        else:
            cosine = 1.0 if float(mine.norm()) == 0 else 0.0
        # Written so that NaN fails.
        comparisons.append(Comparison(quantity, relative, cosine, relative <= largest and cosine >= smallest))

    flips = 0
    if "alpha_raw" in want:
        agree = torch.ones(batch.n, dtype=torch.bool)
        if "beta_raw" in want:
            agree = got["pseudo_labels"] == want["pseudo_labels"]
            flips = int((~agree).sum())
        for name in PER_SAMPLE:
            if name in want:
                keep = agree if name.startswith("beta") else slice(None)
                add(name, got[name][keep], want[name][keep])
    names = list(batch.params)
    add("gradient", flat(got, "grad", names), flat(want, "grad", names))
    before = torch.cat([batch.params[name].double().flatten() for name in names])
    add("update", flat(got, "param", names) - before, flat(want, "param", names) - before)
    if batch.settings.norm == "batch":
        add("running", *(torch.cat([t[f"running.{k}"].double() for k in batch.running]) for t in (got, want)))
    allowed = FLIPS[precision] and max(1, int(FLIPS[precision] * batch.n))
    return Report(comparisons, flips, flips <= allowed and all(c.passed for c in comparisons))


def flat(tensors: dict[str, Tensor], prefix: str, names: list[str]) -> Tensor:
    """All tensors of a kind as one vector."""
    return torch.cat([tensors[f"{prefix}.{name}"].double().flatten() for name in names])

"""The table of arms, and how one is made ready: precision switches, warm-up, choice of variant, CUDA graph."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from batch import Batch
from closed_form import ClosedForm
from double_backprop import DoubleBackprop
from step import State


class Method(Protocol):
    """One way to do the step."""

    state: State

    def step(self, objective: str) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Arm:
    """Name, what it is, and its switches."""

    name: str
    about: str
    closed_form: bool
    channels_last: bool
    graph: bool
    """Whether a CUDA graph of the whole step is tried (on a GPU)."""
    low: bool
    """bf16 convolutions on a GPU (and on the CPU where asked for)."""


ARMS = {arm.name: arm for arm in (
    Arm("double_backprop_eager", "the published way as published: fp32 with TF32, eager", False, False, False, False),
    Arm("double_backprop", "the published way, CUDA graph where it works", False, False, True, False),
    Arm("double_backprop_fast", "the published way with channels_last and bf16 autocast", False, True, True, True),
    Arm("closed_form", "closed form: dual pass by hand, compiled, CUDA graph where it works", True, True, True, True),
)}


def precision_of(arm: Arm, device: torch.device, asked: str | None) -> str:
    """f64 and f32 where asked for; else TF32 or bf16 on a GPU, f32 on a CPU."""
    if asked in ("f64", "f32"):
        return asked
    if device.type == "cpu":
        return "bf16" if asked == "bf16" and arm.low else "f32"
    return "bf16" if arm.low and asked != "tf32" else "tf32"


def set_switches(precision: str) -> None:
    """What every rival gets: TF32 unless exact f32 was asked for, cudnn.benchmark."""
    tf32 = precision in ("tf32", "bf16")
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True


@dataclass
class Ready:
    """An arm ready to be timed; `runners` hold one call per objective, made at first use."""

    arm: Arm
    device: torch.device
    precision: str
    method: Method
    graph: bool
    notes: list[str]
    runners: dict[str, Callable[[], dict[str, Tensor]]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    def runner(self, objective: str) -> Callable[[], dict[str, Tensor]]:
        """The step as it will be timed: warmed up, captured where that works."""
        if objective not in self.runners:
            step = lambda: self.method.step(objective)  # noqa: E731
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            for _ in range(3):
                step()
            if self.graph and self.device.type == "cuda":
                step = self._captured(step, objective)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                # A replay allocates nothing: the peak is that of the same step run or captured.
                self.peaks[objective] = torch.cuda.max_memory_allocated()
            self.runners[objective] = step
            self.method.state.reset()
        return self.runners[objective]

    def _captured(self, step: Callable[[], dict[str, Tensor]], objective: str) -> Callable[[], dict[str, Tensor]]:
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = step()
        except RuntimeError as error:
            self.notes.append(f"{objective}: no CUDA graph, eager: {first_line(error)}")
            print(f"{self.arm.name}: {self.notes[-1]}", file=sys.stderr, flush=True)
            torch.cuda.synchronize()
            return step

        def replay() -> dict[str, Tensor]:
            graph.replay()
            return result
        return replay

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def prepare(arm: Arm, batch: Batch, device: torch.device, asked: str | None, variants: list[str],
            compile_mode: str = "default") -> Ready:
    """The arm on the device. The closed form tries its variants and keeps the fastest; reasons go into the notes."""
    precision = precision_of(arm, device, asked)
    set_switches(precision)
    dtype = torch.float64 if precision == "f64" else torch.float32
    state = State(batch, device, dtype, arm.channels_last)
    low = torch.bfloat16 if precision == "bf16" else None
    if not arm.closed_form:
        return Ready(arm, device, precision, DoubleBackprop(state, low), arm.graph, [])
    notes: list[str] = []
    best: tuple[float, str, Method] | None = None
    for variant in variants:
        compiled, joined = variant.startswith("compiled"), variant.endswith("joined")
        method = ClosedForm(state, low or dtype, compiled, joined, compile_mode)
        started = time.perf_counter()
        try:
            seconds = quickest(method, device)
        except Exception as error:  # noqa: BLE001  whatever a compiler throws: the reason is recorded, the next tried
            notes.append(f"variant {variant}: does not run: {type(error).__name__}: {first_line(error)}")
        else:
            notes.append(f"variant {variant}: {1e3 * seconds:.2f} ms a step, ready after "
                         f"{time.perf_counter() - started:.1f} s")
            if best is None or seconds < best[0]:
                best = seconds, variant, method
        print(f"{arm.name}: {notes[-1]}", file=sys.stderr, flush=True)
        state.reset()
    if best is None:
        raise RuntimeError("no variant of the closed form runs: " + "; ".join(notes))
    notes.append(f"variant chosen: {best[1]}")
    return Ready(arm, device, precision, best[2], arm.graph, notes)


VARIANTS = ["eager", "eager-joined", "compiled", "compiled-joined"]


def quickest(method: Method, device: torch.device, tries: int = 5) -> float:
    """Seconds of the fastest of a few L2B steps, after two for warm-up."""
    best = float("inf")
    for i in range(tries + 2):
        started = time.perf_counter()
        method.step("l2b")
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            best = min(best, time.perf_counter() - started)
    return best


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

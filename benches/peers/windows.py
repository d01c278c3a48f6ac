"""Timed windows in turn: the other end of the serve protocol, and the statistics of what it answers."""

from __future__ import annotations

import json
import selectors
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class ArmFailed(Exception):
    """An arm that did not start, answered with an error, or went away."""


class TooSlow(ArmFailed):
    """An arm that did not answer in time."""


class Client:
    """A process that answers window requests, one JSON object a line. Its standard error goes to ours."""

    def __init__(self, name: str, command: list[str], patience: float = 1800.0) -> None:
        self.name, self.command, self.patience = name, command, patience
        self._rest, self._late = b"", False
        self.ready: dict[str, Any] = {}
        started = time.perf_counter()
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except OSError as error:
            raise ArmFailed(f"{name}: cannot start `{command[0]}`: {error.strerror}") from error
        try:
            self.ready = self._reply()
            if self.ready.get("ready") is not True:
                raise ArmFailed(f"{name}: expected a line with \"ready\": true, found {json.dumps(self.ready)[:300]}")
        except ArmFailed:
            self.close()
            raise
        self.preparing = time.perf_counter() - started
        """Seconds before the first timed window: start, compilation, capture, warm-up, check."""

    def _reply(self) -> dict[str, Any]:
        out, deadline = self._process.stdout, time.monotonic() + self.patience
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self._late = True
                    raise TooSlow(f"{self.name}: no answer within {self.patience:.0f} s")
                piece = out.read(65536)
                if not piece:
                    code = self._process.wait()
                    raise ArmFailed(f"{self.name}: ended with exit code {code} (`{' '.join(self.command)}`)")
                self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError:
            raise ArmFailed(f"{self.name}: not a JSON line: {line[:300]!r}") from None
        if not isinstance(message, dict):
            raise ArmFailed(f"{self.name}: not a JSON object: {line[:300]!r}")
        if "error" in message:
            raise ArmFailed(f"{self.name}: {message['error']}")
        if self.ready and "notes" in message:
            self.ready["notes"] = self.ready.get("notes", []) + message["notes"]
        return message

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise ArmFailed(f"{self.name}: ended (exit code {self._process.poll()})") from error
        return self._reply()

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request whose time counts as preparation."""
        started = time.perf_counter()
        answer = self.ask(request)
        self.preparing += time.perf_counter() - started
        return answer

    def window(self, objective: str, steps: int) -> dict[str, Any]:
        """One window; the answer must be about what was asked."""
        answer = self.ask({"objective": objective, "steps": steps})
        if answer.get("objective") != objective or answer.get("steps") != steps or not answer.get("seconds", 0) > 0:
            raise ArmFailed(f"{self.name}: asked for {steps} steps of {objective}, found {json.dumps(answer)[:300]}")
        return answer

    def reset_resident(self) -> None:
        """Forgets the peak of the process's resident memory (Linux)."""
        try:
            Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")
        except OSError:
            pass

    def peak_resident(self) -> int:
        """Peak resident bytes of the whole process, libraries included; 0 where the system does not tell."""
        try:
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        return 0

    def close(self) -> None:
        """Asks the process to end, and ends it if it does not, or was too slow before."""
        try:
            if self._process.stdin:
                self._process.stdin.write(b'{"quit": true}\n')
                self._process.stdin.close()  # the end of the input ends it too
            self._process.wait(0 if self._late else 10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    pipe.close()


@dataclass
class Series:
    """The windows of one arm and objective."""

    arm: str
    objective: str
    steps: int
    step_seconds: list[float] = field(default_factory=list)
    device_step_seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def measure(clients: list[Client], objectives: list[str], windows: int, window_seconds: float, on_cpu: bool,
            until: float, after_round: Callable[[int, list[Series]], None]) -> list[Series]:
    """`windows` rounds, each asking every arm for one window of every objective, in turn: A B C A B C ...

    Every arm's window has as many steps as fit `window_seconds`, at least one. Warm-up comes first and is kept apart.
    Once `time.monotonic()` has passed `until`, the round that has begun is the last. `after_round` gets the number of
    rounds done and the series so far.
    Peak memory: device bytes as each arm reports them; on the CPU the resident bytes of its process.
    """
    series = []
    for objective in objectives:
        for client in clients:
            client.prepare({"objective": objective, "steps": 1})
            answer = client.window(objective, 1)
            steps = max(1, min(1000, round(window_seconds / answer["seconds"])))
            series.append(Series(client.name, objective, steps))
    by_name = {client.name: client for client in clients}
    for turn in range(windows):
        for s in series:
            client = by_name[s.arm]
            if on_cpu:
                client.reset_resident()
            answer = client.window(s.objective, s.steps)
            s.step_seconds.append(answer["seconds"] / s.steps)
            if answer.get("device_seconds") is not None:
                s.device_step_seconds.append(answer["device_seconds"] / s.steps)
            peak = client.peak_resident() if on_cpu else int(answer.get("peak_bytes") or 0)
            s.peak_bytes = max(s.peak_bytes, peak)
        after_round(turn + 1, series)
        if time.monotonic() > until:
            break
    return series


def spread(values: list[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile."""
    if len(values) == 1:
        return dict.fromkeys(("median", "p10", "p90"), values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1]}


def ratio(slow: Series, fast: Series) -> dict[str, float]:
    """Spread of slow / fast, round by round: neighbours in time share the machine's mood."""
    return spread([a / b for a, b in zip(slow.step_seconds, fast.step_seconds)])


def clocks() -> str | None:
    """Clocks, temperature and power as nvidia-smi tells them; None where it cannot."""
    if not shutil.which("nvidia-smi"):
        return None
    fields = "clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,driver_version"
    done = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None

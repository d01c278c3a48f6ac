"""One rival in its own process, answering window requests on standard input: the protocol of `l2b bench --serve`.

    python worker.py --arm closed_form --batch-file batch.safetensors --device cuda --precision bf16

Out, once ready:  {"ready": true, "device": .., "precision": .., "n": .., "m": .., ..}
In:  {"objective": "ce"|"l2rw"|"l2b", "steps": N}   out: {"objective", "steps", "seconds", "device_seconds", ..}
In:  {"write": FILE, "objective": ..}   one step from the file's state through the timed path; out: {"written": FILE}
In:  {"quit": true}   ends.  What cannot be done is answered by {"error": ..}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from arms import ARMS, VARIANTS, Ready, first_line, prepare
from batch import BadFile, Batch, write_output
from step import OBJECTIVES, output


def window(ready: Ready, objective: str, steps: int) -> dict[str, Any]:
    """Times `steps` steps from the file's state: wall clock, and device events where there is a device."""
    run = ready.runner(objective)
    cuda = ready.device.type == "cuda"
    ready.method.state.reset()
    ready.synchronize()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
    started = time.perf_counter()
    for _ in range(steps):
        run()
    if cuda:
        last.record()
    ready.synchronize()
    seconds = time.perf_counter() - started
    finite = all(bool(torch.isfinite(t).all()) for t in ready.method.state.params.values())
    if not finite:
        raise RuntimeError(f"{steps} steps of {objective} diverged: take fewer steps or a smaller --lr")
    return {"objective": objective, "steps": steps, "seconds": seconds,
            "device_seconds": first.elapsed_time(last) / 1e3 if cuda else seconds,
            "peak_bytes": max(torch.cuda.max_memory_allocated(), ready.peaks[objective]) if cuda else None}


def answer(ready: Ready, request: dict[str, Any]) -> dict[str, Any]:
    """One reply to one request."""
    objective = request.get("objective", "l2b")
    if objective not in OBJECTIVES:
        raise ValueError(f"objective `{objective}`: expected one of {', '.join(OBJECTIVES)}")
    if "write" in request:
        run = ready.runner(objective)
        ready.method.state.reset()
        result = run()
        ready.synchronize()
        write_output(Path(request["write"]), output(ready.method.state, result))
        return {"written": request["write"], "objective": objective}
    steps = request.get("steps")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: expected a whole number, 1 or more, found {steps!r}")
    return window(ready, objective, steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=list(ARMS), required=True)
    parser.add_argument("--batch-file", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["f64", "f32", "tf32", "bf16"], help="default: the arm's own")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="of the closed form")
    parser.add_argument("--compile-mode", default="default", help="torch.compile's mode")
    args = parser.parse_args()

    # Only replies go to standard output; whatever a library prints goes to standard error.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    try:
        batch = Batch.load(args.batch_file)
        ready = prepare(ARMS[args.arm], batch, device, args.precision, args.variants, args.compile_mode)
    except (BadFile, RuntimeError) as error:
        reply({"error": first_line(error)})
        sys.exit(1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    reply({"ready": True, "device": name, "precision": ready.precision, "n": batch.n, "m": batch.m, "arm": args.arm,
           "torch": torch.__version__,
           "notes": ready.notes})
    known = len(ready.notes)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if request.get("quit"):
                return
            result = answer(ready, request)
        except (ValueError, RuntimeError) as error:
            result = {"error": f"{type(error).__name__}: {first_line(error)}"}
        if len(ready.notes) > known:
            result["notes"], known = ready.notes[known:], len(ready.notes)
        reply(result)


if __name__ == "__main__":
    main()

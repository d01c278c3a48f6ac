"""Our step and its rivals, side by side on the same batch: checked against float64 first, then timed in turn.

    python compare.py --device cuda --n 512 --out peers.json
    python compare.py --device cuda --sweep --out sweep.json
    python compare.py --device cpu --n 32 --threads 2 --out cpu.json

Exit codes: 0 everything was checked and timed; 1 an arm failed its check or broke; 2 usage or a bad file;
3 arms were timed, but ours was not there (`--peers-only` makes that 0), or an arm was not ready in time.

The record is written after every check and every round of windows: a run that is cut off leaves what it has done, with
"complete": false.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import make_batch
from arms import ARMS, VARIANTS
from batch import BadFile, Batch, read
from check import compare, reference
from report import table
from windows import ArmFailed, Client, Series, TooSlow, clocks, measure, spread

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OURS = "l2b"


def ours_commands(args: argparse.Namespace, batch_file: Path, output: Path) -> tuple[list[str], list[str]]:
    """(meta-step, serve) of the engine."""
    where = ["--device", args.device, "--precision", args.our_precision]
    if args.threads and not args.device.startswith("cuda"):
        where += ["--threads", str(args.threads)]
    step = [args.l2b, "meta-step", "--input", str(batch_file), "--output", str(output), *where]
    return step, [args.l2b, "bench", "--serve", "--batch-file", str(batch_file), *where]


def check_ours(args: argparse.Namespace, batch: Batch, batch_file: Path, want: dict[str, Tensor],
               folder: Path) -> dict[str, Any]:
    """`l2b meta-step` against the reference. ArmFailed where it does not run or differs."""
    output = folder / "ours.safetensors"
    command, _ = ours_commands(args, batch_file, output)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience(args))
    except OSError as error:
        raise ArmFailed(f"ours: cannot start `{command[0]}`: {error.strerror}; build it with "
                        "`cargo build --release` or name it with --l2b") from error
    except subprocess.TimeoutExpired as error:
        raise TooSlow(f"ours: meta-step took more than {error.timeout:.0f} s") from error
    if done.returncode != 0:
        raise ArmFailed(f"ours: meta-step: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    report = compare(batch, read(output)[0], want, args.our_precision)
    print(f"check {OURS} l2b: {report.text()}", flush=True)
    if not report.passed:
        raise CheckFailed(OURS)
    return {"l2b": report.to_json()}


class CheckFailed(Exception):
    """An arm computes something else than the reference."""


def check_peer(client: Client, batch: Batch, want: dict[str, dict[str, Tensor]], folder: Path) -> dict[str, Any]:
    """Every objective of a rival, through the very path that is timed."""
    reports = {}
    for objective, expected in want.items():
        path = folder / f"{client.name}.{objective}.safetensors"
        client.prepare({"write": str(path), "objective": objective})
        report = compare(batch, read(path)[0], expected, client.ready["precision"])
        print(f"check {client.name} {objective}: {report.text()}", flush=True)
        path.unlink()
        if not report.passed:
            raise CheckFailed(f"{client.name}, {objective}")
        reports[objective] = report.to_json()
    return reports


def references(args: argparse.Namespace, batch: Batch, device: str) -> dict[str, dict[str, Tensor]]:
    """What every objective should give, in float64."""
    where = args.reference_device or device
    try:
        return {o: reference(batch, o, where, args.threads) for o in args.objectives}
    except torch.OutOfMemoryError as error:
        raise ArmFailed("the float64 reference does not fit: --reference-device cpu takes longer, or a smaller --n: "
                        + str(error).splitlines()[0]) from error


def one_size(args: argparse.Namespace, record: dict[str, Any], folder: Path, save: Callable[[], None]) -> None:
    """Batch, checks, windows for the n and m of `record`, which grows and is saved on the way."""
    n, m = record["n"], record["m"]
    print(f"\nn = {n}, m = {m}: making the batch", flush=True)
    device = "cpu" if args.device in ("cpu", "emulator") else args.device
    batch = make_batch.from_arguments(args, n, m, device)
    batch_file = folder / "batch.safetensors"
    batch.save(batch_file)
    absent: str | None = "left out by --peers-only" if args.peers_only else None
    record |= {"settings": json.loads(batch.settings.to_json()), "ours_absent": absent, "left_out": {}, "arms": {},
               "checks": {}, "clocks": [], "series": []}
    print(f"n = {n}, m = {m}: reference in float64", flush=True)
    want = references(args, batch, device)
    if device != "cpu":
        torch.cuda.empty_cache()
    save()

    clients: list[Client] = []

    def ready(client: Client) -> None:
        clients.append(client)
        record["arms"][client.name] = client.ready | {"preparing_seconds": client.preparing}
        save()

    def after_round(done: int, series: list[Series]) -> None:
        record["series"] = [describe(s) for s in series]
        if done % 10 == 0:
            record["clocks"] += filter(None, [clocks()])
            print(f"round {done} of {args.windows}", file=sys.stderr, flush=True)
        save()

    try:
        if absent is None:
            try:
                if "l2b" in want:
                    record["checks"][OURS] = check_ours(args, batch, batch_file, want["l2b"], folder)
                _, serve = ours_commands(args, batch_file, folder / "ours.safetensors")
                ready(Client(OURS, serve, patience(args)))
            except ArmFailed as error:
                record["ours_absent"] = str(error)
                print(f"OURS IS NOT MEASURED: {error}", file=sys.stderr, flush=True)
        for name in args.arms:
            command = [sys.executable, str(HERE / "worker.py"), "--arm", name, "--batch-file", str(batch_file),
                       "--device", device, "--variants", *args.variants, "--compile-mode", args.compile_mode]
            command += ["--precision", args.precision] if args.precision else []
            command += ["--threads", str(args.threads)] if args.threads else []
            client = None
            try:
                client = Client(name, command, patience(args))
                client.patience = patience(args)
                record["checks"][name] = check_peer(client, batch, want, folder)
                client.patience = PATIENCE
                ready(client)
            except TooSlow as error:
                record["left_out"][name] = str(error)
                print(f"LEFT OUT: {error}", file=sys.stderr, flush=True)
            finally:
                if client is not None and client not in clients:
                    client.close()
        for client in clients:
            sizes = client.ready.get("n"), client.ready.get("m")
            if sizes != (n, m):
                raise ArmFailed(f"{client.name}: serves n, m = {sizes} of a batch of {(n, m)}")
        record["clocks"] += filter(None, [clocks()])
        series = measure(clients, list(args.objectives), args.windows, args.window_seconds, device == "cpu",
                         args.deadline, after_round)
        # What it took until the first timed window, and what the arms had to note on the way.
        record["arms"] = {c.name: c.ready | {"preparing_seconds": c.preparing} for c in clients}
    finally:
        for client in clients:
            client.close()
    record["complete"] = True
    save()
    print(table(record, series, n, m), flush=True)


PATIENCE = 1800.0
"""Seconds that an arm may take for an answer."""


def patience(args: argparse.Namespace) -> float:
    """The same while arms get ready: what --seconds leaves, without the quarter that is kept for the windows."""
    return max(0.0, min(PATIENCE, args.deadline - 0.25 * (args.seconds or 0.0) - time.monotonic()))


def describe(s: Series) -> dict[str, Any]:
    """A series in the record: spreads and every window."""
    return {"arm": s.arm, "objective": s.objective, "windows": len(s.step_seconds), "steps_per_window": s.steps,
            "step": spread(s.step_seconds), "device_step": spread(s.device_step_seconds or s.step_seconds),
            "peak_bytes": s.peak_bytes, "step_seconds": s.step_seconds}


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    def run(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
        except OSError:
            return ""
    cuda = torch.cuda.is_available()
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": run("git", "rev-parse", "HEAD"),
        "changed_files": bool(run("git", "status", "--porcelain", "--untracked-files=no")),
        "device": args.device, "gpu": torch.cuda.get_device_name() if cuda else None, "cpu": cpu_name(),
        "threads": args.threads, "torch": torch.__version__, "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None, "python": platform.python_version(),
        "windows": args.windows, "window_seconds": args.window_seconds, "seconds": args.seconds,
        "variants": args.variants}


def cpu_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    make_batch.add_arguments(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                        help="cuda[:N], cpu, or emulator (ours in the emulator, the rivals on the CPU)")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], help="of the rivals; default: each arm's own")
    parser.add_argument("--our-precision", help="default bf16 on a GPU, f32 on a CPU")
    parser.add_argument("--threads", type=int, help="CPU threads of every arm")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="rivals; default all")
    parser.add_argument("--objectives", nargs="+", choices=["ce", "l2rw", "l2b"], default=["ce", "l2b"])
    parser.add_argument("--windows", type=int, default=30, help="rounds (default 30)")
    parser.add_argument("--window-seconds", type=float, default=0.5, help="length of a window (default 0.5)")
    parser.add_argument("--seconds", type=float, help="for all; arms that are not ready after three quarters are left "
                        "out, and rounds end when it is over, after one at least")
    parser.add_argument("--sweep", action="store_true", help="m/n in 1, 1/4, 1/16 for every --sizes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024], help="n of --sweep")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="of the closed form, tried")
    parser.add_argument("--compile-mode", default="default", help="torch.compile's mode, of the closed form")
    parser.add_argument("--reference-device", help="where the float64 reference runs; default: --device")
    parser.add_argument("--l2b", default=str(ROOT / "target" / "release" / "l2b"), help="our executable")
    parser.add_argument("--peers-only", action="store_true", help="leave ours out")
    parser.add_argument("--out", type=Path, help="JSON record to write")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no GPU")
    if args.windows < 1:
        parser.error("--windows: 1 or more")
    args.deadline = time.monotonic() + args.seconds if args.seconds else math.inf
    if not args.device.startswith("cuda"):
        args.arms = [name for name in args.arms if name != "double_backprop_eager"]  # the same without graphs
    args.our_precision = args.our_precision or ("bf16" if args.device.startswith("cuda") else "f32")
    return args


def main() -> int:
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device.startswith("cuda:"):
        torch.cuda.set_device(torch.device(args.device))
    sizes = [(n, max(2, n // share)) for n in args.sizes for share in (1, 4, 16)] if args.sweep else \
        [(args.n, args.m or args.n)]
    record: dict[str, Any] = {"environment": environment(args), "sizes": []}

    def save() -> None:
        if args.out:
            # In one step: a run that is cut off leaves no half file.
            part = args.out.with_name(args.out.name + ".part")
            part.write_text(json.dumps(record, indent=1) + "\n")
            part.replace(args.out)

    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        for n, m in sizes:
            size: dict[str, Any] = {"n": n, "m": m, "complete": False}
            record["sizes"].append(size)
            try:
                one_size(args, size, Path(folder), save)
            except BadFile as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except (ArmFailed, CheckFailed) as error:
                kind = "fails its check, nothing is timed" if isinstance(error, CheckFailed) else "broke"
                print(f"error: n = {n}, m = {m}: {error}: {kind}", file=sys.stderr)
                size["failed"] = str(error)
                code = 1
            save()
    missing = any(size.get("left_out") or (size.get("ours_absent") and not args.peers_only) for size in record["sizes"])
    return code or (3 if missing else 0)


if __name__ == "__main__":
    sys.exit(main())

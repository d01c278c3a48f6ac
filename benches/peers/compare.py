"""Our step and its rivals, side by side on the same batch: checked against float64 first, then timed in turn.

    python compare.py --device cuda --n 512 --out peers.json
    python compare.py --device cuda --sweep --out sweep.json
    python compare.py --device cpu --n 32 --threads 2 --out cpu.json

Exit codes: 0 everything was checked and timed; 1 an arm failed its check or broke; 2 usage or a bad file;
3 the rivals were timed but ours was not there (`--peers-only` makes that 0).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
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
from windows import ArmFailed, Client, Series, clocks, measure, spread

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
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ArmFailed(f"ours: cannot start `{command[0]}`: {error.strerror}; build it with "
                        "`cargo build --release` or name it with --l2b") from error
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


def one_size(args: argparse.Namespace, n: int, m: int, folder: Path) -> dict[str, Any]:
    """Batch, checks, windows for one n and m; the record of it."""
    print(f"\nn = {n}, m = {m}: making the batch", flush=True)
    device = "cpu" if args.device in ("cpu", "emulator") else args.device
    batch = make_batch.from_arguments(args, n, m, device)
    batch_file = folder / "batch.safetensors"
    batch.save(batch_file)
    objectives = list(args.objectives)
    print(f"n = {n}, m = {m}: reference in float64", flush=True)
    try:
        want = {o: reference(batch, o, args.reference_device or device, args.threads) for o in objectives}
    except torch.OutOfMemoryError as error:
        raise ArmFailed("the float64 reference does not fit: --reference-device cpu takes longer, or a smaller --n: "
                        + str(error).splitlines()[0]) from error
    if device != "cpu":
        torch.cuda.empty_cache()

    checks: dict[str, Any] = {}
    absent: str | None = "left out by --peers-only" if args.peers_only else None
    clients: list[Client] = []
    try:
        if absent is None:
            try:
                if "l2b" in want:
                    checks[OURS] = check_ours(args, batch, batch_file, want["l2b"], folder)
                _, serve = ours_commands(args, batch_file, folder / "ours.safetensors")
                clients.append(Client(OURS, serve))
            except ArmFailed as error:
                absent = str(error)
                print(f"OURS IS NOT MEASURED: {absent}", file=sys.stderr, flush=True)
        for name in args.arms:
            command = [sys.executable, str(HERE / "worker.py"), "--arm", name, "--batch-file", str(batch_file),
                       "--device", device, "--variants", *args.variants, "--compile-mode", args.compile_mode]
            command += ["--precision", args.precision] if args.precision else []
            command += ["--threads", str(args.threads)] if args.threads else []
            clients.append(Client(name, command))
            checks[name] = check_peer(clients[-1], batch, want, folder)
        for client in clients:
            sizes = client.ready.get("n"), client.ready.get("m")
            if sizes != (n, m):
                raise ArmFailed(f"{client.name}: serves n, m = {sizes} of a batch of {(n, m)}")
        logged = [clocks()]
        series = measure(clients, objectives, args.windows, args.window_seconds, device == "cpu",
                         lambda: logged.append(clocks()))
        ready = {client.name: client.ready | {"preparing_seconds": client.preparing} for client in clients}
    finally:
        for client in clients:
            client.close()
    record = {"n": n, "m": m, "settings": json.loads(batch.settings.to_json()), "ours_absent": absent,
              "arms": ready, "checks": checks, "clocks": [c for c in logged if c],
              "series": [describe(s) for s in series]}
    print(table(record, series, n, m), flush=True)
    return record


def describe(s: Series) -> dict[str, Any]:
    """A series in the record: spreads and every window."""
    return {"arm": s.arm, "objective": s.objective, "steps_per_window": s.steps,
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
        "windows": args.windows, "window_seconds": args.window_seconds}


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
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        for n, m in sizes:
            try:
                record["sizes"].append(one_size(args, n, m, Path(folder)))
            except BadFile as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except (ArmFailed, CheckFailed) as error:
                kind = "fails its check, nothing is timed" if isinstance(error, CheckFailed) else "broke"
                print(f"error: n = {n}, m = {m}: {error}: {kind}", file=sys.stderr)
                record["sizes"].append({"n": n, "m": m, "failed": str(error)})
                code = 1
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(record, indent=1) + "\n")
    absent = any(size.get("ours_absent") for size in record["sizes"])
    return code or (3 if absent and not args.peers_only else 0)


if __name__ == "__main__":
    sys.exit(main())

"""The library's convolutions, shape by shape: cuDNN on a GPU, oneDNN on a CPU, next to ours.

    l2b bench --device cuda --precision bf16 --batch 512 --parts operations --out ours.json
    python conv_shapes.py --device cuda --precision bf16 --n 512 --ours ours.json --out convs.json

Every distinct convolution of ResNet-18 in channels_last: forward, gradient of the input, gradient of the weight, and
the tangent conv(tx, W) + conv(x, V) both as two convolutions and as one with twice the input channels (the copy into
the joined input not counted), the faster of which counts. TFLOP/s count multiply-adds inside the image as two, the
tangent as twice the forward. Ours are taken from a record: where it has several forms of an operation, the `plain`
one, else the one called most often, which does more (batch norm and ReLU on load, sums): its name is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from arms import set_switches
from network import Architecture, has_projection
from windows import clocks, spread

Shape = tuple[int, int, int, int, int, int, int, int]
"""n, h, w, channels in, channels out, kernel, stride, padding"""

OURS = {"forward": "conv_forward", "input": "conv_backward_input", "weight": "conv_backward_weight",
        "tangent": "conv_tangent"}


def shapes(arch: Architecture, n: int) -> dict[Shape, int]:
    """Convolutions of the network with the number of times each occurs."""
    size, count = arch.image_size, {}

    def add(side: int, inner: int, outer: int, kernel: int, stride: int) -> None:
        key = (n, side, side, inner, outer, kernel, stride, kernel // 2)
        count[key] = count.get(key, 0) + 1

    add(size, arch.in_channels, arch.width, 3, 1)
    for _, inner, outer, stride in arch.residual_blocks():
        if has_projection(inner, outer, stride):
            add(size, inner, outer, 1, stride)
        add(size, inner, outer, 3, stride)
        size = (size - 1) // stride + 1
        add(size, outer, outer, 3, 1)
    return count


def calls(shape: Shape, device: torch.device, dtype: torch.dtype, first: bool) -> dict[str, list[Callable[[], Any]]]:
    """What is timed, per quantity; where there are several ways the fastest counts."""
    n, h, w, c, k, r, stride, pad = shape

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x, tx, weight, v = random(n, c, h, w), random(n, c, h, w), random(k, c, r, r), random(k, c, r, r)
    weight, v = weight / math.sqrt(c * r * r), v / math.sqrt(c * r * r)
    dy = random(*F.conv2d(x, weight, None, stride, pad).shape)

    def backward(*mask: bool) -> Callable[[], Any]:
        return lambda: torch.ops.aten.convolution_backward(
            dy, x, weight, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, [*mask, False])

    result = {"forward": [lambda: F.conv2d(x, weight, None, stride, pad)], "weight": [backward(False, True)]}
    if first:  # the images have no gradient and no tangent
        return result
    both_x = torch.cat([tx, x], 1).contiguous(memory_format=torch.channels_last)
    both_w = torch.cat([weight, v], 1).contiguous(memory_format=torch.channels_last)
    return result | {
        "input": [backward(True, False)],
        "tangent": [lambda: F.conv2d(tx, weight, None, stride, pad).add_(F.conv2d(x, v, None, stride, pad)),
                    lambda: F.conv2d(both_x, both_w, None, stride, pad)]}


def time_call(call: Callable[[], Any], device: torch.device, windows: int, window_seconds: float) -> dict[str, float]:
    """Spread of the seconds of one call: device events on a GPU, wall clock on a CPU."""
    def run(times: int) -> float:
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(times):
                call()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1e3 / times
        started = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - started) / times

    run(3)
    times = max(1, min(1000, round(window_seconds / run(1))))
    return spread([run(times) for _ in range(windows)])


def flops(shape: Shape, quantity: str) -> float:
    n, h, w, c, k, r, stride, pad = shape
    # Along each side: pairs of output and tap that meet a pixel of the image, not its padding.
    rows, columns = (sum(0 <= at * stride + tap - pad < side
                         for at in range((side + 2 * pad - r) // stride + 1) for tap in range(r))
                     for side in (h, w))
    return 2.0 * n * rows * columns * k * c * (2 if quantity == "tangent" else 1)


def ours_of(record: dict[str, Any], shape: Shape, quantity: str) -> tuple[float, str] | None:
    """(median seconds, form) of our operation in a record of `l2b bench`, if it is there."""
    rows = [row for row in record["operations"]
            if row["operation"] == OURS[quantity] and row["shape"] == ",".join(map(str, shape))]
    rows.sort(key=lambda row: (row["form"] != "plain", -row["calls_l2b"]))
    return (rows[0]["seconds"]["median"], rows[0]["form"]) if rows else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 2, 2, 2])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--in-channels", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], help="default bf16 on a GPU, f32 on a CPU")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--windows", type=int, default=30)
    parser.add_argument("--window-seconds", type=float, default=0.02)
    parser.add_argument("--ours", type=Path, help="record of `l2b bench --parts operations --out FILE`")
    parser.add_argument("--out", type=Path, help="JSON record to write, after every shape")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no GPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    precision = args.precision or ("f32" if device.type == "cpu" else "bf16")
    set_switches(precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    try:
        record = json.loads(args.ours.read_text()) if args.ours else {"operations": []}
        found = record.get("settings", {}).get("precision", precision)
        if found != precision:
            parser.error(f"{args.ours}: measured in {found}, this run is in {precision}")
    except (OSError, ValueError) as error:
        parser.error(f"--ours {args.ours}: {error}")

    arch = Architecture(args.width, tuple(args.blocks), args.in_channels, args.image_size, 10)
    library = "cuDNN" if device.type == "cuda" else "oneDNN"
    print(f"{library}, {precision}, channels_last; us: median (p10-p90)\n")
    print("| n,h,w,c,k,r,stride,pad | times | what | library us | TFLOP/s | ours us | ours: form | library / ours |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows, ratios = [], {}

    def save(complete: bool) -> None:
        if args.out:
            args.out.write_text(json.dumps({
                "library": library, "precision": precision, "n": args.n, "torch": torch.__version__, "clocks": clocks(),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "windows": args.windows,
                "complete": complete, "rows": rows}, indent=1) + "\n")

    for index, (shape, count) in enumerate(shapes(arch, args.n).items()):
        for quantity, ways in calls(shape, device, dtype, first=index == 0).items():
            times = min((time_call(way, device, args.windows, args.window_seconds) for way in ways),
                        key=lambda s: s["median"])
            ours = ours_of(record, shape, quantity)
            ratio = times["median"] / ours[0] if ours else None
            if ratio:
                ratios.setdefault(quantity, []).append(ratio)
            rate = flops(shape, quantity) / times["median"]
            rows.append({"shape": shape, "occurs": count, "quantity": quantity, "seconds": times, "flops": rate,
                         "ours_seconds": ours[0] if ours else None, "ours_form": ours[1] if ours else None})
            mine = f"{1e6 * ours[0]:.1f} | {ours[1]} | {ratio:.2f}" if ours else "not measured | - | -"
            print(f"| {','.join(map(str, shape))} | {count} | {quantity} | {1e6 * times['median']:.1f} "
                  f"({1e6 * times['p10']:.1f}-{1e6 * times['p90']:.1f}) | {rate / 1e12:.3f} | {mine} |", flush=True)
        save(complete=False)
    if args.ours and not ratios:
        print(f"error: {args.ours} holds none of these convolutions: n, network or --parts differ", file=sys.stderr)
        return 1
    for quantity, values in ratios.items():
        print(f"\n{quantity}: library / ours, geometric mean over shapes "
              f"{math.exp(sum(map(math.log, values)) / len(values)):.3f}, worst {min(values):.3f}")
    save(complete=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

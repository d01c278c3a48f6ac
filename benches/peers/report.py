"""The table that `compare.py` prints."""

from __future__ import annotations

from typing import Any

from windows import Series, ratio, spread

OURS = "l2b"


def table(record: dict[str, Any], series: list[Series], n: int, m: int) -> str:
    """Markdown: every arm's steps, spread and memory, ratios to ours and to its own CE step."""
    windows = len(series[0].step_seconds) if series else 0
    lines = ["", f"n = {n}, m = {m}; ms a step: median (p10-p90) of {windows} windows; ratios are medians of the rounds' "
                 "ratios", "",
             "| arm | precision | objective | ms | device ms | peak MiB | / ours | / own CE | images/s |",
             "|---|---|---|---|---|---|---|---|---|"]
    find = {(s.arm, s.objective): s for s in series}
    for s in series:
        ours, plain = find.get((OURS, s.objective)), find.get((s.arm, "ce"))
        lines.append("| " + " | ".join([
            s.arm, str(record["arms"][s.arm].get("precision")), s.objective, milliseconds(s.step_seconds),
            milliseconds(s.device_step_seconds) if s.device_step_seconds else "not measured",
            f"{s.peak_bytes / 2**20:.0f}" if s.peak_bytes else "not measured",
            factor(s, ours) if ours and ours is not s else "-",
            factor(s, plain) if plain and plain is not s else "-",
            f"{n / spread(s.step_seconds)['median']:.0f}"]) + " |")
    if record["ours_absent"]:
        lines += ["", f"{OURS}: not measured: {record['ours_absent']}"]
    lines += [line for name, reason in record["left_out"].items() for line in ("", f"{name}: not measured: {reason}")]
    for name, ready in record["arms"].items():
        lines += ["", f"{name}: {ready['preparing_seconds']:.1f} s before its first timed window (start, compilation, "
                      "warm-up, check)"]
        lines += [f"{name}: {note}" for note in ready.get("notes", [])]
    return "\n".join(lines)


def milliseconds(values: list[float]) -> str:
    s = spread(values)
    return f"{1e3 * s['median']:.2f} ({1e3 * s['p10']:.2f}-{1e3 * s['p90']:.2f})"


def factor(slow: Series, fast: Series) -> str:
    r = ratio(slow, fast)
    return f"{r['median']:.2f} ({r['p10']:.2f}-{r['p90']:.2f})"

"""Rows of the attention bench: what becomes of parity and times, and how a person reads them."""

import math

from opponents import OPPONENTS
from parity import Verdict
from roofline import Roofline
from shapes import DIRECTIONS, LEVELS, Shape, Work
from timing import Times

HEADER = (
    f"  {'backend':27}{'ms':>10}{'p20':>10}{'p80':>10}{'TFLOP/s':>9}{'of bound':>10}{'peak MiB':>10}"
    f"{'error':>10}{'limit':>10}{'best opponent / it':>20}"
)


def row(shape: Shape, direction: str, dtype: str, backend: str, verdict: Verdict | None, note: str = "") -> dict:
    """A row that has not been timed. status: "ok", "FAIL", or "not available" with the reason in `note`."""
    made = {"shape": shape.as_dict(), "direction": direction, "dtype": dtype, "backend": backend}
    made |= {"opponent": backend in OPPONENTS, "status": "not available", "note": note, "error": None, "limit": None}
    made |= dict.fromkeys(("ms", "ms_p20", "ms_p80", "samples_ms", "tflops", "bound_share", "bound_by", "peak_mib"))
    made |= {"intensity": None, "ratio": None}
    if verdict is None:
        return made
    made |= {"status": "ok", "error": _finite(verdict.worst), "limit": max(verdict.limits.values())}
    if verdict.failed:
        wrong = ", ".join(f"{n} {verdict.errors[n]:.2g} (limit {verdict.limits[n]:.2g})" for n in verdict.failed)
        made |= {"status": "FAIL", "note": f"relative error of {wrong}"}
    return made


def add_times(made: dict, times: Times, work: Work, roofline: Roofline) -> None:
    """Fills in what follows from the times."""
    bound, by = roofline.bound(work)
    made |= {
        "ms": times.median,
        "ms_p20": times.quantile(0.2),
        "ms_p80": times.quantile(0.8),
        "samples_ms": [round(ms, 5) for ms in times.ms],
        "tflops": work.flops / times.median / 1e9,
        "bound_share": bound / times.median,
        "bound_by": by,
        "peak_mib": None if times.peak is None else times.peak / 2**20,
        "intensity": work.flops / work.bytes,
    }


def add_ratios(rows: list[dict]) -> None:
    """Fills in how many times faster each timed row is than the best opponent beside it."""
    opponents = [r["ms"] for r in rows if r["opponent"] and r["ms"] is not None]
    for made in rows:
        if opponents and made["ms"] is not None:
            made["ratio"] = min(opponents) / made["ms"]


def line(made: dict) -> str:
    """One line of the table. A row that failed shows no time, even if it has one."""
    name = f"  {made['backend']:27}"
    if made["status"] != "ok":
        return f"{name}{made['status']}: {made['note']}"
    error = f"{made['error']:>10.1e}{made['limit']:>10.1e}"
    if made["ms"] is None:
        return f"{name}{made['note'] or 'not timed':>59}{error}"
    peak = "-" if made["peak_mib"] is None else f"{made['peak_mib']:.1f}"
    ratio = "-" if made["ratio"] is None else f"{made['ratio']:.3f}"
    return (
        f"{name}{made['ms']:>10.3f}{made['ms_p20']:>10.3f}{made['ms_p80']:>10.3f}{made['tflops']:>9.3g}"
        f"{made['bound_share']:>10.1%}{peak:>10}{error}{ratio:>20}"
    )


def step(rows: list[dict]) -> dict[str, dict[str, float]]:
    """direction -> contender -> milliseconds of all 16 attention layers of a denoiser step, for contenders timed at
    every level; "best opponents" takes the best of each level, which no single opponent may be."""
    totals = {}
    for direction in DIRECTIONS:
        mine = [r for r in rows if r["direction"] == direction and r["ms"] is not None]
        level = {(name, (r["shape"]["N"], r["shape"]["D"])): r["ms"] for r in mine for name in [r["backend"]]}
        for r in mine:
            if r["opponent"]:
                key = "best opponents", (r["shape"]["N"], r["shape"]["D"])
                level[key] = min(level.get(key, math.inf), r["ms"])
        names = [name for name in dict.fromkeys(n for n, _ in level) if all((name, at) in level for at in LEVELS)]
        if names:
            totals[direction] = {n: sum(count * level[n, at] for at, count in LEVELS.items()) for n in names}
    return totals


def step_lines(totals: dict[str, dict[str, float]]) -> list[str]:
    lines = []
    for direction, sums in totals.items():
        lines.append(f"\nall {sum(LEVELS.values())} layers of a step, {direction}")
        best = sums.get("best opponents")
        for name, ms in sums.items():
            lines.append(f"  {name:27}{ms:>10.2f}" + ("" if best is None else f"{best / ms:>10.3f} x best opponents"))
    return lines


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON knows neither infinity nor NaN

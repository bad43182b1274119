"""Rows of the attention bench: what becomes of parity and times, and how a person reads them."""

import math
from collections.abc import Iterable

from opponents import OPPONENTS
from parity import Verdict
from roofline import Roofline
from shapes import DIRECTIONS, LEVELS, MODEL, Shape, Work
from timing import Times

BEST = "best opponents"
HEADER = (
    f"  {'backend':27}{'ms':>10}{'p20':>10}{'p80':>10}{'TFLOP/s':>9}{'of bound':>10}{'peak MiB':>10}"
    f"{'error':>10}{'limit':>10}{'best opponent / it':>20}"
)


def row(shape: Shape, direction: str, dtype: str, backend: str, verdict: Verdict | None, note: str = "") -> dict:
    """A row that has not been timed. status: "ok", "FAIL", or "not available" with the reason in `note`
    (or "not timed", see `absent`)."""
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


def step(rows: list[dict]) -> list[dict]:
    """All 16 attention layers of a denoiser step, for every direction and contender with a row at every level of the
    model: the sum of ms, None if a level was not timed, and its ratio to the best opponents. These take the best of
    each level, which no single opponent may be. Of other clips and heads than the model's there is none."""
    found = []
    rows = [row for row in rows if (row["shape"]["B"], row["shape"]["F"], row["shape"]["H"]) == MODEL]
    for direction in DIRECTIONS:
        level = {}
        for made in (row for row in rows if row["direction"] == direction):
            at = made["shape"]["N"], made["shape"]["D"]
            level[made["backend"], at] = made["ms"]
            if made["opponent"] and made["ms"] is not None:
                level[BEST, at] = min(level.get((BEST, at), math.inf), made["ms"])
        whole = [name for name in dict.fromkeys(n for n, _ in level) if all((name, at) in level for at in LEVELS)]
        sums = {name: _weighted([(level[name, at], layers) for at, layers in LEVELS.items()]) for name in whole}
        best = sums.get(BEST)
        for name, ms in sums.items():
            ratio = None if best is None or ms is None else best / ms
            found.append({"direction": direction, "backend": name, "ms": ms, "ratio": ratio})
    return found


def _weighted(parts: list[tuple[float | None, int]]) -> float | None:
    timed = [ms * count for ms, count in parts if ms is not None]
    return sum(timed) if len(timed) == len(parts) else None


def step_lines(steps: list[dict]) -> list[str]:
    lines = []
    for direction in dict.fromkeys(made["direction"] for made in steps):
        mine = [made for made in steps if made["direction"] == direction]
        title = f"\nall {sum(LEVELS.values())} layers of a step, {direction}"
        if all(made["ms"] is None for made in mine):
            lines.append(f"{title}: not timed")
            continue
        lines.append(f"{title}\n  {'backend':27}{'ms':>10}{'best opponents / it':>21}")
        for made in mine:
            ms = "not timed" if made["ms"] is None else f"{made['ms']:.2f}"
            ratio = "-" if made["ratio"] is None else f"{made['ratio']:.3f}"
            lines.append(f"  {made['backend']:27}{ms:>10}{ratio:>21}")
    return lines


def absent(shape: Shape, direction: str, dtype: str, names: Iterable[str]) -> list[dict]:
    """Rows of a shape that nothing here can time."""
    status = {"status": "not timed", "note": "there is no GPU"}
    return [row(shape, direction, dtype, name, None) | status for name in names]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON knows neither infinity nor NaN

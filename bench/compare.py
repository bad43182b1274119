"""Is HEAD slower than BASE? `uv run bench/compare.py BASE.json HEAD.json`, two files that `bench/attn.py --json` wrote.

A row (shape, backend, dtype, direction) is slower when it takes over 5 % longer than the spread of both runs
explains: when HEAD's 20th percentile is beyond 1.05 times BASE's 80th. Exit code 1 if a row is slower, is missing
from HEAD, or failed parity there; 2 if a file cannot be used.
What passes within a spread so wide that a tenth more would pass, too, is not called the same.

Given further pairs (BASE2.json HEAD2.json, taken in turns with the first), a row is slower only if it is in all of
them. Of 108 rows of three runs of one commit on shared cores, one was slower in a single pair, so one pair alone
would stop every sixth change or so for nothing.

On a machine whose speed wanders, --ratio-to BACKEND compares each row's time as a multiple of that backend's row in
the same run, round by round, so that what slows all of them down cancels out.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Key = tuple[str, str, str, str]  # shape, direction, dtype, backend
ALLOWED = 0.05
SLOWER = "SLOWER"
VISIBLE = 0.10  # a row whose spread would hide more than this is not called the same


class UnusableError(Exception):
    """A file or a pair of files that nothing can be said about."""


@dataclass(frozen=True)
class Figure:
    """What is compared of a row: milliseconds or a ratio, and the bounds of its spread."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One row of a run; `figure` is None where it was not timed."""

    failed: bool
    note: str
    figure: Figure | None
    samples: list[float]


@dataclass(frozen=True)
class Verdict:
    """What is said about one row; `fails` decides the exit code."""

    key: Key
    base: Figure | None
    head: Figure | None
    text: str
    fails: bool


def read(path: Path) -> tuple[str, dict[Key, Row]]:
    """The device (with the number of threads of a CPU) and the rows of a file.

    Raises:
        UnusableError: it cannot be read, or is not what `bench/attn.py --json` writes.
    """
    try:
        record = json.loads(path.read_text())
        rows = {_key(row): _row(row) for row in record["rows"]}
        device = " ".join(str(record["machine"].get(fact, "")) for fact in ("device", "threads")).strip()
    except OSError as error:
        raise UnusableError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UnusableError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UnusableError(f"{path}: not a record of bench/attn.py ({type(error).__name__}: {error})") from error
    if len(rows) != len(record["rows"]):
        raise UnusableError(f"{path}: some rows are there twice")
    if not any(row.figure or row.failed for row in rows.values()):
        raise UnusableError(f"{path}: no row of it was timed")
    return device, rows


def ratios(path: Path, rows: dict[Key, Row], backend: str) -> dict[Key, Row]:
    """The rows as multiples of the row of `backend` beside them, which is left out, unless it failed parity.

    Raises:
        UnusableError: a timed row has no row of `backend` beside it that was timed or failed.
    """
    result = {}
    for key, row in rows.items():
        if key[-1] == backend:
            if row.failed:
                result[key] = row
            continue
        unit = rows.get((*key[:-1], backend))
        if row.figure is None or row.failed:
            result[key] = row
        elif unit is not None and unit.failed:
            result[key] = Row(False, f"{backend} failed parity", None, [])
        elif unit is None or unit.figure is None:
            raise UnusableError(f"{path}: no time of {backend} beside {' '.join(key)}")
        else:
            result[key] = Row(False, "", _ratio(row, unit, row.figure, unit.figure), [])
    return result


def compare(base: dict[Key, Row], head: dict[Key, Row]) -> list[Verdict]:
    """One verdict for every row of either run."""
    verdicts = []
    for key in dict.fromkeys([*base, *head]):
        old, new = base.get(key), head.get(key)
        before, after = old and old.figure, new and new.figure
        if new is not None and new.failed:
            text, fails = f"PARITY FAILED {new.note}", True
        elif before is None:
            text, fails = ("new" if after else "not timed"), False
        elif after is None:
            text, fails = f"MISSING {new.note if new else ''}", True
        else:
            fails = after.low > (1 + ALLOWED) * before.high
            text = SLOWER if fails else _not_slower(before, after)
        verdicts.append(Verdict(key, before, after, text.strip(), fails))
    return verdicts


def confirm(pairs: list[list[Verdict]]) -> list[Verdict]:
    """One verdict for every row of all pairs: slower only where all agree that timed it in both of their runs, missing
    or wrong where any says so."""
    rows: dict[Key, list[Verdict]] = {}
    for verdict in (verdict for pair in pairs for verdict in pair):
        rows.setdefault(verdict.key, []).append(verdict)
    return [_agreed(verdicts) for verdicts in rows.values()]


def _agreed(verdicts: list[Verdict]) -> Verdict:
    slower = [verdict for verdict in verdicts if verdict.text == SLOWER]
    broken = [verdict for verdict in verdicts if verdict.fails and verdict.text != SLOWER]
    fine = [verdict for verdict in verdicts if not verdict.fails and verdict.base and verdict.head]
    if broken or not fine or not slower:
        return (broken or slower or fine or verdicts)[0]
    return replace(fine[0], text=f"{fine[0].text}, slower in {len(slower)} of {len(verdicts)} pairs")


def _not_slower(before: Figure, after: Figure) -> str:
    if before.low > (1 + ALLOWED) * after.high:
        return "faster"
    seen = (1 + ALLOWED) * (before.high / before.middle) * (after.middle / after.low) - 1
    return "same" if seen <= VISIBLE else f"no worse than noise (from {seen:+.0%} on it would fail)"


def table(verdicts: list[Verdict]) -> str:
    """The verdicts for a person, those that fail last, where they are seen."""
    lines = [f"{'shape, direction, dtype':55}{'backend':27}{'base':>26}{'head':>26}{'change':>10}  verdict"]
    for verdict in sorted(verdicts, key=lambda v: v.fails):
        change = ""
        if verdict.base and verdict.head:
            change = f"{verdict.head.middle / verdict.base.middle - 1:+.1%}"
        place, backend = ", ".join(verdict.key[:-1]), verdict.key[-1]
        figures = f"{_show(verdict.base):>26}{_show(verdict.head):>26}{change:>10}"
        lines.append(f"{place:55}{backend:27}{figures}  {verdict.text}")
    return "\n".join(lines)


def _key(row: dict[str, Any]) -> Key:
    shape = " ".join(f"{name}{size}" for name, size in row["shape"].items())
    return shape, str(row["direction"]), str(row["dtype"]), str(row["backend"])


def _row(row: dict[str, Any]) -> Row:
    if row["ms"] is None:
        figure = None
    else:
        figure = Figure(float(row["ms"]), float(row["ms_p20"]), float(row["ms_p80"]))
        slack = 1 + 1e-9  # percentiles are rounded, each in its own way
        if not (0 < figure.low <= figure.middle * slack <= figure.high * slack**2 < float("inf")):
            raise ValueError(f"times of {row['backend']} are {figure}, not 0 < p20 <= median <= p80")
    samples: list[float] = list(row.get("samples_ms") or ())
    if wrong := [ms for ms in samples if not (isinstance(ms, int | float) and 0 < ms < float("inf"))]:
        raise ValueError(f"a round of {row['backend']} took {wrong[0]!r} ms")
    return Row(row["status"] == "FAIL", str(row.get("note", "")), figure, samples)


def _ratio(row: Row, unit: Row, time: Figure, unit_time: Figure) -> Figure:
    """Round by round where the rounds were kept, otherwise of the medians, with the spread of both."""
    if len(row.samples) == len(unit.samples) > 1:
        rounds = [a / b for a, b in zip(row.samples, unit.samples, strict=True)]
        low, *_, high = statistics.quantiles(rounds, n=5, method="inclusive")
        return Figure(statistics.median(rounds), low, high)
    return Figure(time.middle / unit_time.middle, time.low / unit_time.high, time.high / unit_time.low)


def _show(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{figure.middle:.4g} ({figure.low:.3g}..{figure.high:.3g})"


def compare_files(base: Path, head: Path, unit: str | None) -> list[Verdict]:
    """Verdicts on two files, as multiples of the backend `unit` if one is given.

    Raises:
        UnusableError: one of them cannot be used, or they do not compare.
    """
    (base_device, base_rows), (head_device, head_rows) = read(base), read(head)
    if unit:
        return compare(ratios(base, base_rows, unit), ratios(head, head_rows, unit))
    if base_device != head_device:
        raise UnusableError(f"times on {base_device} and on {head_device} do not compare; --ratio-to may")
    return compare(base_rows, head_rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="BASE.json HEAD.json", help="one pair or more")
    parser.add_argument("--ratio-to", metavar="BACKEND", help="compare multiples of this backend's time in each run")
    options = parser.parse_args(arguments)
    if len(options.files) % 2:
        parser.error("files come in pairs: BASE.json HEAD.json")
    pairs = zip(options.files[::2], options.files[1::2], strict=True)
    try:
        verdicts = confirm([compare_files(base, head, options.ratio_to) for base, head in pairs])
    except UnusableError as error:
        print(error, file=sys.stderr)
        return 2
    unit = f"multiples of {options.ratio_to}" if options.ratio_to else "milliseconds"
    print(f"{unit}, median (20th..80th percentile)\n{table(verdicts)}")
    failing = sum(verdict.fails for verdict in verdicts)
    print(f"\n{failing} of {len(verdicts)} rows fail" if failing else f"\nno row of {len(verdicts)} fails")
    return 1 if failing else 0


if __name__ == "__main__":
    sys.exit(main())

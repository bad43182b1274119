"""What the Triton kernels cost on each chip, compiled without a GPU: registers, spills, shared memory, tensor cores.

uv run bench/compile_report.py                print the figures beside the recorded registers; exit code 1 on a fault
uv run bench/compile_report.py --update       record the figures in tests/kernels/golden, unless at fault
uv run bench/compile_report.py --only sm_90   those whose name contains it; there must be one

It says nothing about speed: nothing here is timed.
"""

import argparse
import multiprocessing
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from xdyna_kernels import gluon_ahead_of_time as gluon
from xdyna_kernels.ahead_of_time import (
    Case,
    Figures,
    compile_case,
    compile_cases,
    faults,
    read_golden,
    table_cases,
    write_golden,
)

GOLDEN = Path(__file__).parents[1] / "tests" / "kernels" / "golden" / "compile.json"
GLUON = GOLDEN.with_name("gluon.json")
SUMMARY = r"sm_90 half .*(D=(40|80|160)|C=320) even"  # one chip, the model's sizes; all of it takes minutes


def show(cases: list[Case], figures: dict[str, Figures], recorded: dict[str, Figures]) -> int:
    """Prints a table; returns the number of faults."""
    failed = 0
    print(f"{'kernel':66} {'registers':>12} {'spills':>6} {'shared':>7} {'tensor core':>11}")
    for case in cases:
        found, before = figures[case.name], recorded.get(case.name)
        registers = f"{found.registers} ({before.registers if before else '-'})"
        print(f"{case.name:66} {registers:>12} {found.spills:6} {found.shared:7} {found.tensor_core:11}")
        for fault in faults(case, found, before):
            print(f"    FAIL {fault}")
            failed += 1
    return failed


def triton_report(cases: list[Case], update: bool, whole: bool) -> int:
    """Compiles cases and prints their table; returns the number of faults. `whole`: what is recorded must be there."""
    recorded = read_golden(GOLDEN) if GOLDEN.exists() else {}
    figures = dict(zip((case.name for case in cases), compile_cases(cases), strict=True))
    failed = show(cases, figures, figures if update else recorded)
    stale = sorted(set(recorded) - set(figures)) if whole and not update else []
    for name in stale:
        print(f"{name}\n    FAIL recorded, but no longer in the table: run with --update")
    if update and not failed:
        write_golden(GOLDEN, figures)
    print()
    return failed + len(stale)


def show_gluon(
    rows: list[tuple[str, int]], loops: list[list[gluon.Figures]], recorded: dict[str, dict[int, gluon.Figures]]
) -> int:
    """The same of the Gluon kernels, whose loops, one of each warpgroup, are held to an order, too. Shown is the
    longest."""
    failed = 0
    print(f"{'kernel':30} {'instructions':>14} {'spills':>6} {'shared':>7} {'products':>8}  order of the loop")
    for (kernel, size), of_warpgroups in zip(rows, loops, strict=True):
        found, before = _longest(of_warpgroups), recorded.get(kernel, {}).get(size)
        instructions = f"{found.instructions} ({before.instructions if before else '-'})"
        figure = f"{instructions:>14} {found.spills:6} {found.shared:7} {sum(found.products.values()):8}"
        print(f"{gluon.name(kernel, size):30} {figure}  {found.order}")
        # Not the record's order, which may be of what is found here.
        tile = gluon.TABLES[kernel][size]
        expected = replace(before or found, order=gluon.pipelined(kernel, tile))
        wrong = [] if before else ["not recorded: run bench/compile_report.py --update"]
        if len(of_warpgroups) != tile.warpgroups:
            wrong.append(f"loops: {len(of_warpgroups)} were found, of {tile.warpgroups} warpgroups")
        wrong += [fault for loop in of_warpgroups for fault in gluon.faults(loop, expected)]
        for fault in dict.fromkeys(wrong):
            print(f"    FAIL {fault}")
            failed += 1
    return failed


def _longest(of_warpgroups: list[gluon.Figures]) -> gluon.Figures:
    return max(of_warpgroups, key=lambda loop: loop.instructions)


def gluon_report(rows: list[tuple[str, int]], update: bool, whole: bool) -> int:
    """Compiles Gluon kernels, by name and size, and prints their table; returns the number of faults. `whole`: what is
    recorded must be there."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        loops = list(pool.map(gluon.compile_kernel, *zip(*rows, strict=True)))
    by_kernel: dict[str, dict[int, gluon.Figures]] = {kernel: {} for kernel in gluon.TABLES}
    for (kernel, size), of_warpgroups in zip(rows, loops, strict=True):
        by_kernel[kernel][size] = _longest(of_warpgroups)
    recorded = gluon.read_golden(GLUON) if GLUON.exists() else {}
    recorded = by_kernel if update else recorded
    failed = show_gluon(rows, loops, recorded)
    for kernel, of_sizes in recorded.items() if whole else ():
        for size in sorted(of_sizes.keys() - by_kernel[kernel].keys()):
            print(f"{kernel} {size}\n    FAIL recorded, but no longer in the table: run with --update")
            failed += 1
    if update and not failed:
        gluon.write_golden(GLUON, by_kernel)
    return failed


def summary() -> int:
    """Compiles a few kernels in this process and prints their table; returns the number of faults."""
    cases = [case for case in table_cases() if re.search(SUMMARY, case.name)]
    recorded = read_golden(GOLDEN) if GOLDEN.exists() else {}
    return show(cases, {case.name: compile_case(case) for case in cases}, recorded)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="record the figures")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name contains it")
    options = parser.parse_args(arguments)
    if options.update and options.only:
        parser.error("--update records the whole table: leave --only out")

    cases = [case for case in table_cases() if options.only in case.name]
    rows = [(kernel, size) for kernel, table in gluon.TABLES.items() for size in table]
    rows = [row for row in rows if options.only in gluon.name(*row)]
    if not cases and not rows:
        parser.error(f"--only: no kernel's name contains {options.only}")
    failed = triton_report(cases, options.update, whole=not options.only) if cases else 0
    failed += gluon_report(rows, options.update, whole=not options.only) if rows else 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

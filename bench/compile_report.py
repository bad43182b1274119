"""What the Triton kernels cost on each chip, compiled without a GPU: registers, spills, shared memory, tensor cores.

uv run bench/compile_report.py                print the figures beside the recorded registers; exit code 1 on a fault
uv run bench/compile_report.py --update       record the figures in tests/kernels/golden/compile.json, unless at fault
uv run bench/compile_report.py --only sm_90   those whose name contains it; there must be one

It says nothing about speed: nothing here is timed.
"""

import argparse
import re
import sys
from pathlib import Path

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
    if not cases:
        parser.error(f"--only: no kernel's name contains {options.only}")
    recorded = read_golden(GOLDEN) if GOLDEN.exists() else {}
    figures = dict(zip((case.name for case in cases), compile_cases(cases), strict=True))
    failed = show(cases, figures, figures if options.update else recorded)
    stale = sorted(set(recorded) - set(figures)) if not (options.only or options.update) else []
    for name in stale:
        print(f"{name}\n    FAIL recorded, but no longer in the table: run with --update")
    if options.update and not failed:
        write_golden(GOLDEN, figures)
    return 1 if failed or stale else 0


if __name__ == "__main__":
    sys.exit(main())

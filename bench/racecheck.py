"""What compute-sanitizer's racecheck says of the kernels, and which of it is of Triton's own making.

`gl.warp_specialize` compiles to bytes in shared memory that tell each warp what to run next: written by the first
warps, then a barrier of the whole program, then read by the others. racecheck reports a hazard between that write and
that read in kernels that also have barriers in shared memory (see racecheck_control.py), and gives for the read the
line of the kernel's `def`, where no statement of the kernel stands. tests/kernels holds the machine code to the
barrier.

python bench/racecheck.py run SCRIPT ...       runs it, and says so if it came to its end without an error
python bench/racecheck.py judge LOG EXIT_CODE  prints the hazards as JSON; exit code 1 if one is of the kernel's own
                                               (EXIT_CODE null: nothing was checked, and "passed" is null, too)
"""

import argparse
import json
import re
import runpy
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

SOURCES = (Path(__file__).parent, Path(__file__).parents[1] / "packages/xdyna-kernels/src/xdyna_kernels")
_ACCESS = r"(Read|Write) access at (\w+)\+0x[0-9a-f]+ in ([\w.]+):(\d+)"
DONE = "what was to be checked came to its end"
LINES_KEPT = 200
PROGRAMS = 3  # of a persistent kernel: with the GPU's own number, none would take a second tile of a small shape


@dataclass(frozen=True)
class Hazard:
    kernel: str
    accesses: list[str]  # "Read gluon_kernel.py:173": the first, and the one or more that race with it
    of_dispatch: bool  # whether each of these races is with Triton's reading of what its warps are to do next


def hazards(log: str) -> list[Hazard]:
    """Those of a log, one for each access that others race with."""
    found: list[list[tuple[str, ...]]] = []
    for line in log.splitlines():
        if access := re.search(_ACCESS, line):
            if "Race reported between" in line:
                found.append([])
            if found:
                found[-1].append(access.groups())
    return [
        Hazard(
            kernel=accesses[0][1],
            accesses=[f"{kind} {file}:{number}" for kind, _, file, number in accesses],
            of_dispatch=_of_dispatch(*accesses),
        )
        for accesses in found
    ]


def _of_dispatch(first: tuple[str, ...], *others: tuple[str, ...]) -> bool:
    """Whether the first access, or every one that races with it, reads at the head of the kernel."""
    reads = [kind == "Read" and _is_head(*where) for kind, *where in (first, *others)]
    return reads[0] or (first[0] == "Write" and bool(others) and all(reads[1:]))


def _is_head(kernel: str, file: str, line: str) -> bool:
    """Whether that line of that file is the `def` of the kernel."""
    for folder in SOURCES:
        if (folder / file).exists():
            lines = (folder / file).read_text().splitlines()
            return int(line) <= len(lines) and lines[int(line) - 1].startswith(f"def {kernel}(")
    return False


def judge(path: Path, exit_code: int | None) -> int:
    """exit_code: of compute-sanitizer, None where it was not there: then nothing has failed, and nothing passed."""
    log = path.read_text(errors="replace")
    found = hazards(log)
    # Its exit code tells hazards, and then not whether what it ran failed.
    ran = exit_code is None or (DONE in log and "RACECHECK SUMMARY" in log and (exit_code == 0 or bool(found)))
    failed = not (ran and all(hazard.of_dispatch for hazard in found))
    passed = None if exit_code is None and not failed else not failed
    record = {"exit_code": exit_code, "passed": passed, "hazards": [asdict(hazard) for hazard in found]}
    json.dump(record | {"log": log.splitlines()[-LINES_KEPT:]}, sys.stdout, indent=1)
    return 1 if failed else 0


def run(script: str, arguments: list[str]) -> int:
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    from xdyna_kernels import gluon_forward  # imports triton, which `judge` does without

    assert hasattr(gluon_forward, "multiprocessors")
    gluon_forward.multiprocessors = lambda on: PROGRAMS
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    if code == 0:
        print(DONE, flush=True)
    return code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "judge"))
    parser.add_argument("file", type=Path, metavar="SCRIPT or LOG")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="... or EXIT_CODE")
    options = parser.parse_args(arguments)
    if not options.file.is_file():
        parser.error(f"{options.file}: no such file")
    if options.what == "run":
        return run(str(options.file), options.rest)
    if len(options.rest) != 1 or not re.fullmatch(r"\d+|null", options.rest[0]):
        parser.error("judge takes a log and an exit code, or null")
    return judge(options.file, json.loads(options.rest[0]))


if __name__ == "__main__":
    sys.exit(main())

"""Has this change made the CPU backends slower? `uv run bench/ci.py [BASE]`, BASE a commit (HEAD~1).

The kernels where HEAD and BASE part are taken out of git into a temporary folder, and this checkout's bench runs on
them and on this checkout's own, on small shapes. bench/compare.py compares the rows as multiples of the released
way's time in the same run, so that whatever else the machine does cancels out. Where one is slower, both run again in
turn (base, head, base, head), and a row is slower only if both pairs say so; a run of HEAD that has to be stopped,
after 30 s and 2.5 times as long as BASE's, says so of every row. If BASE does not run the second time, the only pair
decides. Exit code 1 if a row is slower, or wrong or missing, which no second pair excuses.
Where there is nothing to compare with (no history, no kernels in BASE, or they do not run within 30 s), it says so in
one line and passes.

Of 1000 drawn comparisons of one commit with itself, none failed; of 200 with "sdpa" a quarter slower, 198 did
(tests/bench/test_ci_spreads.py, from runs recorded while other work loaded both cores).
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import compare

ROOT = Path(__file__).resolve().parents[1]
KERNELS = "packages/xdyna-kernels/src"
UNIT = "released"  # it is part of the bench, so it is the same in all runs
SETTINGS = f"--device cpu --only own,{UNIT} --shape 128x40 --shape 64x80 --frames 2 --repeats 15 --no-compile-report"
PAIRS = 2
GIT_LIMIT = 30.0  # seconds: in a partial clone git may ask its remote for what is missing
LIMIT = 30.0  # seconds that a run may take; it asks for ten of processor time
MUCH = 2.5  # and HEAD's this many times as long as BASE's, if that is more: a busy machine slows down both


class NothingToCompareError(Exception):
    """There is no base to compare with; the message is one line."""


@dataclass(frozen=True)
class Run:
    """One run of the bench: its record, or why there is none."""

    record: Path
    seconds: float
    problem: str
    stopped: bool = False


def extract(base: str, folder: Path) -> str:
    """Puts the kernels of the commit where HEAD and `base` part into the folder; returns the commit.

    Raises:
        NothingToCompareError: there is no such commit here, it has no kernels, or they are those of this checkout; or
            git takes too long.
    """
    try:
        commit = _git("merge-base", "HEAD", base).decode().strip()
    except (OSError, subprocess.CalledProcessError):
        raise NothingToCompareError(f"no history from {base} to here") from None
    try:
        archive = _git("archive", commit, "--", KERNELS)
    except subprocess.CalledProcessError:
        raise NothingToCompareError(f"{commit[:12]} has no kernels") from None
    if not _git("diff", "--name-only", commit, "--", KERNELS):
        raise NothingToCompareError(f"the kernels are those of {commit[:12]}")
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return commit


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True, timeout=GIT_LIMIT).stdout
    except subprocess.TimeoutExpired:
        raise NothingToCompareError(f"git {arguments[0]} took more than {GIT_LIMIT:.0f} s") from None


def bench(kernels: Path, record: Path, limit: float) -> Run:
    """Runs this checkout's bench on the kernels in a folder, for `limit` seconds at most."""
    record.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "bench" / "attn.py"), *SETTINGS.split(), "--json", str(record)]
    environment = os.environ | {"PYTHONPATH": str(kernels), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return Run(record, limit, f"stopped after {limit:.0f} s", stopped=True)
    # A run with a wrong row has a whole record, and exit code 1; one that was killed may have the first half of one.
    problem = "" if _is_whole(record) else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Run(record, time.monotonic() - started, problem)


def _is_whole(record: Path) -> bool:
    try:
        return json.loads(record.read_text())["complete"]
    except (OSError, ValueError):  # none, or one that was being written
        return False


def verdict(base: str) -> int:
    """Runs and compares; returns the exit code.

    Raises:
        NothingToCompareError: see `extract`; or BASE's kernels do not run in this bench.
    """
    pairs: list[list[compare.Verdict]] = []  # without those in which HEAD was stopped: they say that all is slower
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commit = extract(base, folder)[:12]
        for turn in range(PAIRS):
            print(f"bench: the kernels of {commit}, then those of this checkout", flush=True)
            old = bench(folder / KERNELS, folder / "base.json", LIMIT)
            if old.problem and turn == 0:
                raise NothingToCompareError(f"the kernels of {commit} did not run: {old.problem}")
            if old.problem:
                print(f"bench: slower in the only pair, since the kernels of {commit} did not run again: {old.problem}")
                break
            new = bench(ROOT / KERNELS, folder / "head.json", max(LIMIT, MUCH * old.seconds))
            if new.problem and not new.stopped:
                print(f"bench: FAIL: {new.problem}")
                return 1
            if new.stopped:
                print(f"bench: slower: {new.problem}; the kernels of {commit} took {old.seconds:.0f} s")
                continue
            pairs.append(compare.compare_files(old.record, new.record, UNIT))
            if {row.text for row in pairs[-1] if row.fails} != {compare.SLOWER}:
                break  # nothing fails, or what a second pair could not excuse
    if not pairs:
        print("bench: FAIL: no run of this checkout came to its end")
        return 1
    rows = compare.confirm(pairs)
    failing = sum(row.fails for row in rows)
    print(f"multiples of {UNIT}, median (20th..80th percentile)\n{compare.table(rows)}\n{failing} rows fail")
    return 1 if failing else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="HEAD~1", help="a commit; compared is where HEAD left it (HEAD~1)")
    options = parser.parse_args(arguments)
    try:
        return verdict(options.base)
    except NothingToCompareError as reason:
        print(f"bench: nothing to compare: {reason}")
        return 0
    except compare.UnusableError as error:
        print(f"bench: FAIL: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())

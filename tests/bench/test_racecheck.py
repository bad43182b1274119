"""Which hazards of racecheck are held against the kernels."""

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

gluon_kernel = pytest.importorskip("xdyna_kernels.gluon_kernel", reason="Gluon comes with triton")

ROOT = Path(__file__).parents[2]
HEAD = "Race reported between Read access at attend_kernel+0x100 in gluon_kernel.py:{}"
LOG = """========= COMPUTE-SANITIZER
========= Error: {}
=========     and Write access at attend_kernel+0x8ac0 in gluon_kernel.py:173 [5 hazards]
=========     and Write access at attend_kernel+0xeab0 in gluon_kernel.py:232 [7 hazards]
what was to be checked came to its end
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


@pytest.fixture
def racecheck(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("racecheck")


@pytest.fixture
def judge(racecheck: ModuleType, tmp_path: Path) -> Callable[[str, int | None], int]:
    def of(log: str, code: int | None) -> int:
        (tmp_path / "log").write_text(log)
        return racecheck.judge(tmp_path / "log", code)

    return of


@pytest.fixture
def dispatch() -> str:
    """As an H100's racecheck wrote it, but for the line of the kernel's `def`, which may move."""
    lines = inspect.getsource(gluon_kernel).splitlines()
    return LOG.format(HEAD.format(1 + next(n for n, line in enumerate(lines) if line.startswith("def attend_kernel("))))


def test_the_hand_out_of_warps_is_tritons(dispatch: str, racecheck: ModuleType, judge: Callable):
    (hazard,) = racecheck.hazards(dispatch)
    assert hazard.of_dispatch
    assert [access.split()[0] for access in hazard.accesses] == ["Read", "Write", "Write"]
    assert judge(dispatch, 3) == 0


@pytest.mark.parametrize(
    "access",
    [
        HEAD.format(1),
        HEAD.format(10**6),
        "Race reported between Read access at attend_kernel+0x900 in gluon_kernel.py:140",
        "Race reported between Write access at _consume+0x900 in gluon_kernel.py:140",
        "Race reported between Read access at attend_kernel+0x100 in elsewhere.py:173",
    ],
)
def test_any_other_hazard_fails(access: str, dispatch: str, racecheck: ModuleType, judge: Callable):
    log = LOG.format(access)
    assert not racecheck.hazards(log)[0].of_dispatch
    assert judge(log, 3) == 1
    assert judge(dispatch + log, 3) == 1, "one of Triton's beside it excuses nothing"


def test_each_race_of_a_group_is_to_be_with_the_dispatch(dispatch: str, racecheck: ModuleType, judge: Callable):
    """The first access of a group races with each of the others, and these not with one another."""
    kernel, file = (
        "Write access at attend_kernel+0x8ac0 in gluon_kernel.py:173",
        "attend_kernel+0x900 in gluon_kernel.py",
    )
    head = dispatch.split("between ")[1].splitlines()[0]

    def of_dispatch(first: str, *others: str) -> bool:
        lines = [f"Error: Race reported between {first}", *(f"    and {other} [5 hazards]" for other in others)]
        log = "\n".join(f"========= {line}" for line in lines)
        (hazard,) = racecheck.hazards(log)
        code = judge(f"{log}\n{racecheck.DONE}\n========= RACECHECK SUMMARY: 1 hazard displayed\n", 3)
        assert code == (0 if hazard.of_dispatch else 1)
        return hazard.of_dispatch

    own_read, own_write = f"Read access at {file}:140", f"Write access at {file}:140"
    assert of_dispatch(head, kernel, own_write)
    assert of_dispatch(kernel, head)
    assert of_dispatch(kernel, head, head)
    assert not of_dispatch(kernel, head, own_read)
    assert not of_dispatch(kernel, own_read, head)
    assert not of_dispatch(kernel, head, own_write)
    assert not of_dispatch(own_read, kernel, head)
    assert not of_dispatch(kernel)


def test_what_was_not_checked_has_not_passed(dispatch: str, judge: Callable, capsys):
    for log, code, passed in (
        ("", None, None),
        (dispatch, 3, True),
        ("", 0, False),
        (LOG.format(HEAD.format(1)), None, False),
    ):
        judge(log, code)
        assert json.loads(capsys.readouterr().out)["passed"] is passed


def test_what_did_not_run_to_its_end_does_not_pass(dispatch: str, racecheck: ModuleType, judge: Callable):
    clean = f"{racecheck.DONE}\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert judge(clean, 0) == 0
    assert judge("", None) == 0, "compute-sanitizer is not installed"
    assert judge("", 0) == 1
    assert judge(clean, 1) == 1, "an error that is no hazard"
    for code in (1, 3, 124, 139):
        assert judge(dispatch.replace("RACECHECK SUMMARY", ""), code) == 1, "cut off"
        assert judge(dispatch.replace(racecheck.DONE, "Traceback"), code) == 1, "it failed, beside Triton's hazard"


@pytest.mark.parametrize(("end", "code"), [("", 0), ("sys.exit(0)", 0), ("sys.exit(1)", 1), ("sys.exit('why')", 1)])
def test_only_what_succeeds_is_said_to_have_come_to_its_end(end, code, tmp_path: Path):
    (tmp_path / "script.py").write_text(f"import sys\nassert sys.argv[1:] == ['--flag']\n{end}\n")
    command = [sys.executable, ROOT / "bench" / "racecheck.py", "run", tmp_path / "script.py", "--flag"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code
    assert ("came to its end" in done.stdout) == (code == 0)


def test_a_persistent_kernel_is_run_by_a_few_programs(racecheck: ModuleType, tmp_path: Path):
    """So that one takes several tiles of a small shape."""
    script = tmp_path / "script.py"
    script.write_text(
        "from xdyna_kernels import gluon_forward\nprint(gluon_forward.multiprocessors(None), 'programs')\n"
    )
    command = [sys.executable, ROOT / "bench" / "racecheck.py", "run", script]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"{racecheck.PROGRAMS} programs" in said

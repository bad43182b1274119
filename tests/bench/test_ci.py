"""bench/ci.py in repositories made here: a planted slowdown fails, noise and a missing history do not."""

import importlib
import json
import os
import random
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SPREADS = json.loads((Path(__file__).parent / "golden" / "spreads.json").read_text())
SMALL = "--device cpu --only sdpa,released --shape 48x40 --frames 2 --direction forward --repeats 7 --no-compile-report"
# A bench that takes no time: the kernels themselves say how slow they are.
STAND_IN = """
import json, random, sys
from pathlib import Path
import xdyna_kernels as kernels

rng, rows = random.Random(), []
log = Path(__file__).with_name("log")
log.write_text((log.read_text() if log.exists() else "") + kernels.NAME + " ")
for backend in ("released", *kernels.BACKENDS):
    samples = sorted(10 * kernels.BACKENDS.get(backend, 1) * rng.uniform(0.99, 1.01) for _ in range(15))
    rows.append({"shape": {"N": 8}, "direction": "forward", "dtype": "fp32", "backend": backend, "status": "ok"})
    rows[-1] |= {"ms": samples[7], "ms_p20": samples[3], "ms_p80": samples[11]}
    if backend in kernels.WRONG:
        rows[-1] |= {"status": "FAIL", "ms": None, "note": "relative error"}
record = {"machine": {"device": "a CPU"}, "rows": rows}
Path(sys.argv[sys.argv.index("--json") + 1]).write_text(json.dumps(record))
sys.exit(bool(kernels.WRONG))
"""

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with a repository and a folder for temporary files of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    ci = importlib.import_module("ci")
    for folder in ("repository", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(ci, "ROOT", tmp_path / "repository")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name, value in {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}.items():
        monkeypatch.setenv(name, value)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@b")
    return ci


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def commit(ci: ModuleType, name: str, wrong: tuple[str, ...] = (), more: str = "", **slowness: float) -> str:
    """A commit of kernels that say how slow they are."""
    kernels = ci.ROOT / ci.KERNELS / "xdyna_kernels" / "__init__.py"
    kernels.parent.mkdir(parents=True, exist_ok=True)
    kernels.write_text(f"NAME, BACKENDS, WRONG = {name!r}, {slowness!r}, {wrong!r}\n{more}\n")
    bench = ci.ROOT / "bench" / "attn.py"
    bench.parent.mkdir(exist_ok=True)
    bench.write_text(STAND_IN)
    if not (ci.ROOT / ".git").exists():
        git(ci.ROOT, "init", "-q", "-b", "main")
    git(ci.ROOT, "add", "--", "packages", "bench/attn.py")
    git(ci.ROOT, "commit", "-q", "-m", name)
    return git(ci.ROOT, "rev-parse", "HEAD").strip()


def ran(ci: ModuleType) -> list[str]:
    """Whose kernels the bench ran on, in order."""
    log = ci.ROOT / "bench" / "log"
    return log.read_text().split() if log.exists() else []


@pytest.mark.parametrize(("slowness", "code"), [(1.0, 0), (1.03, 0), (1.12, 1), (2.0, 1)])
def test_a_slowdown_fails_and_the_same_speed_does_not(ci, capsys, slowness, code):
    commit(ci, "old", sdpa=1.0)
    commit(ci, "new", sdpa=slowness)
    assert ci.main([]) == code
    assert ("SLOWER" in capsys.readouterr().out) == (code == 1)
    assert ran(ci) == ["old", "new"] * (2 if code else 1)  # what failed is run again
    assert list(Path(tempfile.gettempdir()).iterdir()) == []
    assert len(git(ci.ROOT, "worktree", "list").splitlines()) == 1
    assert git(ci.ROOT, "status", "--porcelain", "--untracked-files=no") == ""


def test_only_kernels_that_changed_are_timed(ci, capsys):
    commit(ci, "old", sdpa=1.0)
    git(ci.ROOT, "commit", "-q", "--allow-empty", "-m", "nothing")
    assert ci.main([]) == 0
    assert "nothing to compare: the kernels are those of" in capsys.readouterr().out
    assert ran(ci) == []


def test_what_is_not_committed_yet_is_timed_too(ci):
    base = commit(ci, "old", sdpa=1.0)
    (ci.ROOT / ci.KERNELS / "xdyna_kernels" / "__init__.py").write_text(
        "NAME, BACKENDS, WRONG = 'draft', {'sdpa': 2.0}, ()"
    )
    assert ci.main([base]) == 1
    assert ran(ci) == ["old", "draft"] * 2


def test_the_base_is_where_the_branches_part(ci, capsys):
    first = commit(ci, "first", sdpa=1.0)
    git(ci.ROOT, "checkout", "-q", "-b", "change")
    commit(ci, "change", sdpa=1.0)
    commit(ci, "change2", sdpa=1.0)
    git(ci.ROOT, "checkout", "-q", "main")
    commit(ci, "main faster since", sdpa=0.1)
    git(ci.ROOT, "checkout", "-q", "change")
    assert ci.main(["main"]) == 0
    assert first[:12] in capsys.readouterr().out
    assert ran(ci) == ["first", "change2"]


@pytest.mark.parametrize("history", ["none", "shallow", "first commit", "unknown", "no git"])
def test_without_history_one_line_says_so_and_it_passes(ci, monkeypatch, tmp_path, capsys, history):
    base = "0" * 40 if history == "unknown" else "HEAD~1"
    if history != "none":
        commit(ci, "old", sdpa=1.0)
    if history not in ("none", "first commit"):
        commit(ci, "new", sdpa=2.0)
    if history == "shallow":
        git(tmp_path, "clone", "-q", "--depth", "1", f"file://{ci.ROOT}", "clone")
        monkeypatch.setattr(ci, "ROOT", tmp_path / "clone")
    if history == "no git":
        monkeypatch.setenv("PATH", str(tmp_path))
    assert ci.main([base]) == 0
    text = capsys.readouterr().out
    assert text.splitlines() == [f"bench: nothing to compare: no history from {base} to here"]
    assert ran(ci) == []


def test_a_base_without_kernels_or_whose_kernels_do_not_run_passes(ci, capsys):
    git(ci.ROOT, "init", "-q", "-b", "main")
    git(ci.ROOT, "commit", "-q", "--allow-empty", "-m", "empty")
    commit(ci, "broken", more="raise ImportError('an older torch')", sdpa=1.0)
    assert ci.main([]) == 0
    assert "has no kernels" in capsys.readouterr().out
    commit(ci, "new", sdpa=1.0)
    assert ci.main([]) == 0
    assert "did not run: ImportError: an older torch" in capsys.readouterr().out


def test_a_head_that_does_not_run_or_is_wrong_fails(ci, capsys):
    commit(ci, "old", sdpa=1.0)
    commit(ci, "broken", more="raise ImportError('a typing mistake')", sdpa=1.0)
    assert ci.main([]) == 1
    assert "FAIL: ImportError: a typing mistake" in capsys.readouterr().out
    commit(ci, "wrong", wrong=("sdpa",), sdpa=1.0)
    assert ci.main(["HEAD~2"]) == 1
    assert "PARITY FAILED relative error" in capsys.readouterr().out


def test_rows_may_be_new_but_not_go_missing(ci, capsys):
    commit(ci, "old", sdpa=1.0)
    commit(ci, "more", sdpa=1.0, triton=0.5)
    assert ci.main([]) == 0
    assert "new" in capsys.readouterr().out
    commit(ci, "fewer", triton=0.5)
    assert ci.main([]) == 1
    assert "MISSING" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("base_s", "head_s", "code", "words"),
    [
        (10, 29, 0, "0 rows fail"),
        (10, 31, 1, "stopped after 30 s"),
        (25, 62, 0, "0 rows fail"),
        (25, 63, 1, "stopped after 62 s"),
        (29, 1e9, 1, "stopped after 72 s"),
        (31, 1, 0, "nothing to compare"),
    ],
)
def test_runs_that_take_too_long(ci, monkeypatch, capsys, base_s, head_s, code, words):
    """A slow head is, against the base of the same machine; a base that takes too long says nothing."""
    commit(ci, "old", sdpa=1.0)
    commit(ci, "new", sdpa=1.0)
    run = ci.bench

    def bench(kernels, record, limit):
        seconds = head_s if ci.ROOT in kernels.parents else base_s
        if seconds > limit:
            return ci.Run(record, limit, f"stopped after {limit:.0f} s", stopped=True)
        return replace(run(kernels, record, 600), seconds=seconds)

    monkeypatch.setattr(ci, "bench", bench)
    assert ci.main([]) == code
    assert words in capsys.readouterr().out


def test_a_run_is_stopped_at_its_limit(ci):
    commit(ci, "hangs", more="import time; time.sleep(60)", sdpa=1.0)
    run = ci.bench(ci.ROOT / ci.KERNELS, ci.ROOT / "head.json", 0.2)
    assert (run.problem, run.stopped, run.seconds) == ("stopped after 0 s", True, 0.2)


@pytest.mark.parametrize(
    ("slowness", "turns", "code", "words"),
    [
        (1.0, {"new": [1]}, 0, "0 rows fail"),
        (2.0, {"new": [1]}, 1, "SLOWER"),
        (2.0, {"new": [2]}, 1, "SLOWER"),
        (1.0, {"new": [1, 2]}, 1, "no run of this checkout came to its end"),
        (1.0, {"old": [2]}, 0, "0 rows fail"),  # there was no second
        (2.0, {"old": [2]}, 1, "slower in the only pair"),
        (1.0, {"new": [1], "old": [2]}, 1, "slower in the only pair"),
        (2.0, {"old": [1]}, 0, "nothing to compare"),
    ],
)
def test_two_pairs_decide_whether_head_is_slower(ci, monkeypatch, capsys, slowness, turns, code, words):
    """`turns`: which runs of either side are stopped."""
    commit(ci, "old", sdpa=1.0)
    commit(ci, "new", sdpa=slowness)
    run, begun = ci.bench, {"old": 0, "new": 0}

    def bench(kernels, record, limit):
        side = "new" if ci.ROOT in kernels.parents else "old"
        begun[side] += 1
        if begun[side] in turns.get(side, ()):
            return ci.Run(record, limit, f"stopped after {limit:.0f} s", stopped=True)
        return run(kernels, record, limit)

    monkeypatch.setattr(ci, "bench", bench)
    assert ci.main([]) == code
    assert words in capsys.readouterr().out
    assert max(begun.values()) <= 2


@pytest.mark.parametrize(("more", "words"), [({"wrong": ("sdpa",)}, "PARITY FAILED"), ({}, "MISSING")])
def test_a_second_pair_is_not_asked_about_what_is_wrong(ci, monkeypatch, capsys, more, words):
    """Neither may it be forgotten when that pair is not to be had."""
    commit(ci, "old", sdpa=1.0, triton=1.0)
    commit(ci, "new", triton=2.0, **more, **({"sdpa": 1.0} if more else {}))
    run, asked = ci.bench, []

    def bench(kernels, record, limit):
        asked.append(kernels)
        if len(asked) > 2:
            return ci.Run(record, limit, "stopped after 30 s", stopped=True)
        return run(kernels, record, limit)

    monkeypatch.setattr(ci, "bench", bench)
    assert ci.main([]) == 1
    assert words in capsys.readouterr().out
    assert len(asked) == 2


def test_a_git_that_hangs_is_left(ci, monkeypatch, tmp_path, capsys):
    commit(ci, "old", sdpa=1.0)
    (tmp_path / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ci, "GIT_LIMIT", 0.1)
    assert ci.main([]) == 0
    assert "nothing to compare: git merge-base took more than" in capsys.readouterr().out


def test_a_planted_slowdown_of_the_real_kernels_fails(ci, monkeypatch, capsys):
    """In a copy of kernels and bench, "sdpa" computes its own attention forty times. One pair: each takes seconds."""
    monkeypatch.setattr(ci, "SETTINGS", SMALL)
    monkeypatch.setattr(ci, "LIMIT", 300.0)
    monkeypatch.setattr(ci, "PAIRS", 1)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bench", ci.ROOT / "bench", ignore=ignore)
    shutil.copytree(ROOT / ci.KERNELS, ci.ROOT / ci.KERNELS, ignore=ignore)
    git(ci.ROOT, "init", "-q")
    git(ci.ROOT, "add", ".")
    git(ci.ROOT, "commit", "-q", "-m", "as it is")
    planted = ci.ROOT / ci.KERNELS / "xdyna_kernels" / "sdpa.py"
    line = "    own = F.scaled_dot_product_attention(heads(q), heads(k), heads(v))\n"
    assert planted.read_text().count(line) == 1
    planted.write_text(planted.read_text().replace(line, line * 40))
    assert ci.main(["HEAD"]) == 1
    slower = [text for text in capsys.readouterr().out.splitlines() if "SLOWER" in text]
    assert len(slower) == 1
    assert " sdpa " in slower[0]


def simulated(compare: ModuleType, rng: random.Random, slower: dict[str, float]) -> bool:
    """Whether CI fails on two pairs of runs that are drawn from recorded ones, round by round."""
    pairs = []
    runs = iter(rng.sample(range(len(SPREADS["runs"])), 4))
    for _ in range(2):
        sides = []
        for factors in ({}, slower):
            recorded, rows = SPREADS["runs"][next(runs)], {}
            for place, contenders in recorded.items():
                rounds = rng.choices(range(SPREADS["rounds"]), k=SPREADS["rounds"])
                for backend, samples in contenders.items():
                    drawn = [samples[i] * factors.get(backend, 1) for i in rounds]
                    figure = compare.Figure(1, 1, 1)  # the ratio is taken round by round
                    rows[(*place.split(", "), backend)] = compare.Row(False, "", figure, drawn)
            sides.append(compare.ratios(Path("run"), rows, "released"))
        pairs.append(compare.compare(*sides))
    return any(verdict.fails for verdict in compare.confirm(pairs))


def test_false_alarms_and_misses_over_recorded_spreads(ci):
    """Runs of one commit, recorded with other work on both cores, are compared a thousand times as CI would."""
    compare, rng, draws = importlib.import_module("compare"), random.Random(0), 1000
    false = sum(simulated(compare, rng, {}) for _ in range(draws))
    found = {slower: sum(simulated(compare, rng, {"sdpa": slower}) for _ in range(200)) for slower in (1.25, 1.5)}
    assert false <= draws // 200, f"{false} false alarms in {draws} runs of CI"
    assert found[1.25] >= 180, found
    assert found[1.5] == 200, found

"""Runs that bench/ci.py stops, and what it makes of those that are left: the second pair, or the only one."""

from dataclasses import replace

import pytest
from ci_repository import commit


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

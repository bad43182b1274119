"""bench/ci.py in repositories made here: which commits it compares, and that a planted slowdown fails, but neither the
same speed nor a missing history."""

import tempfile
from pathlib import Path

import pytest
from ci_repository import commit, git, ran


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
        "NAME, BACKENDS, WRONG, KILLED = 'draft', {'sdpa': 2.0}, (), False"
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


def test_half_a_record_is_none(ci, capsys):
    """Of a run that was killed: what it lacks would be new in the other, and pass."""
    commit(ci, "killed", killed=True, sdpa=1.0)
    commit(ci, "slow", sdpa=40.0)
    assert ci.main([]) == 0
    assert "did not run: exit code 1" in capsys.readouterr().out
    commit(ci, "killed while it writes", more="import sys\nopen(sys.argv[-1], 'w').write('{')\nsys.exit(3)")
    assert ci.main([]) == 1
    assert "FAIL: exit code 3" in capsys.readouterr().out
    commit(ci, "killed again", killed=True, sdpa=40.0)
    assert ci.main(["HEAD~2"]) == 1
    assert "FAIL: exit code 1" in capsys.readouterr().out


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

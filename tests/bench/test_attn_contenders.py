"""Who takes part in bench/attn.py: every backend of the package by itself, and none that is wrong or refuses to run."""

import json
from types import ModuleType, SimpleNamespace

import pytest
import torch
import xdyna_kernels
from small_run import SMALL


def right(*tensors):
    return xdyna_kernels.reference_attention(*tensors, backend="sdpa")


def wrong_scale(q, *rest):
    """Of heads padded from 40 to 64 channels."""
    return right(q * (40 / 64) ** 0.5, *rest)


def missing_key(q, k, v, q_ref, k_ref, v_ref, *rest):
    return right(q, k, v, q_ref, k_ref[:, :-1], v_ref[:, :-1], *rest)


def nan(*tensors):
    return right(*tensors) * float("nan")


def half_gradient(*tensors):
    out = right(*tensors)
    return out / 2 + out.detach() / 2


def unwritten(*tensors):
    """Right with what lies in memory anyway, as a result is that nobody writes where the right one lay before."""
    out = right(*tensors)
    return out + 0 * torch.empty_like(out)


def raises(*tensors):
    raise RuntimeError("a kernel that cannot run")


def mistaken(*tensors):
    """No refusal, but a mistake of the package's own."""
    raise ValueError("min() arg is an empty sequence")


def plant(attn: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, contender):
    """A backend of the package's own, for as long as the test runs."""
    build, names = attn.opponents.build, (*attn.opponents.own_backends(), name)
    monkeypatch.setattr(attn.opponents, "build", lambda wanted: contender if wanted == name else build(wanted))
    monkeypatch.setattr(attn.opponents, "own_backends", lambda: names)


@pytest.mark.parametrize("wrong", [wrong_scale, missing_key, nan, half_gradient, unwritten, raises, mistaken])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_wrong_results_fail_and_are_not_timed(attn, monkeypatch, tmp_path, capsys, wrong, dtype):
    plant(attn, monkeypatch, "wrong", wrong)
    path = tmp_path / "rows.json"
    assert attn.main([*SMALL, "--only", "wrong,sdpa,released", "--dtype", dtype, "--json", str(path)]) == 1
    assert "FAIL" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    failed = [row for row in rows if row["status"] == "FAIL"]
    assert {row["backend"] for row in failed} == {"wrong"}
    assert all(row["ms"] is None for row in failed)
    assert {row["direction"] for row in failed} >= {"forward+backward"}
    assert all(row["ms"] > 0 for row in rows if row["backend"] != "wrong")


@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "FAIL", "CUDA error: an illegal memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "ok", "out of memory"),
    ],
)
def test_what_breaks_while_all_are_timed_is_recorded(attn, monkeypatch, tmp_path, capsys, error, status, note):
    """After an illegal access everything fails, and who did it need not be the one that hears of it."""

    def broken(*arguments):
        raise error

    monkeypatch.setattr(attn.roofline, "Probes", broken)
    path = tmp_path / "rows.json"
    assert attn.main([*SMALL, "--only", "sdpa,released", "--json", str(path)]) == (status == "FAIL")
    assert ("FAIL: 4 of 4 rows are wrong" in capsys.readouterr().err) == (status == "FAIL")
    record = json.loads(path.read_text())
    assert record["complete"]
    assert [(row["status"], row["ms"]) for row in record["rows"]] == [(status, None)] * 4
    assert all(row["note"].startswith(note) for row in record["rows"])


def test_what_was_judged_is_recorded_when_the_next_one_never_ends(attn, monkeypatch, tmp_path):
    class Killed(BaseException):
        pass

    def hangs(*tensors):
        raise Killed

    plant(attn, monkeypatch, "hangs", hangs)
    path = tmp_path / "rows.json"
    with pytest.raises(Killed):
        attn.main([*SMALL, "--only", "sdpa,hangs", "--json", str(path)])
    record = json.loads(path.read_text())
    assert not record["complete"]
    assert [(row["backend"], row["status"]) for row in record["rows"]] == [("sdpa", "ok")]


def two_percent(opponents: ModuleType):
    """Scores a fiftieth too large."""

    def attend(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.02 * q.shape[-1] ** -0.5)

    return opponents.folded(attend)


def bias_of_four_fifths(opponents: ModuleType):
    return lambda *tensors: right(*tensors[:7], 0.8 * tensors[7], *tensors[8:])


@pytest.mark.parametrize("make", [two_percent, bias_of_four_fifths])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_result_that_is_a_little_wrong_fails_forward(attn, monkeypatch, tmp_path, capsys, make, dtype):
    plant(attn, monkeypatch, "wrong", make(attn.opponents))
    path = tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--shape", "256x40", "--frames", "1", "--direction", "forward", "--parity-only"]
    arguments += ["--only", "wrong,sdpa,released", "--dtype", dtype, "--no-compile-report", "--json", str(path)]
    assert attn.main(arguments) == 1
    assert [row["status"] for row in json.loads(path.read_text())["rows"]] == ["FAIL", "ok", "ok"]


def test_eager_is_no_contender_in_half_precision(attn, tmp_path, capsys):
    """Its scores are rounded, which the limits do not allow for."""
    path = tmp_path / "rows.json"
    for dtype, status in (("bf16", "not available"), ("fp16", "not available"), ("fp32", "ok")):
        assert attn.main([*SMALL, "--parity-only", "--only", "eager,sdpa", "--dtype", dtype, "--json", str(path)]) == 0
        rows = json.loads(path.read_text())["rows"]
        assert {row["backend"]: row["status"] for row in rows} == {"eager": status, "sdpa": "ok"}


def test_refusing_backends_are_not_available_with_the_reason(attn, monkeypatch, tmp_path, capsys):
    def refuses(*tensors):
        raise ValueError("backend 'picky' needs a GPU, q is on cpu")

    plant(attn, monkeypatch, "picky", refuses)
    path = tmp_path / "rows.json"
    only = "picky,sdpa,folded-cudnn"
    assert attn.main([*SMALL, "--only", only, "--direction", "forward", "--json", str(path)]) == 0
    assert "not available: backend 'picky' needs a GPU, q is on cpu" in capsys.readouterr().out
    picky, _, cudnn = json.loads(path.read_text())["rows"]
    assert picky["status"] == cudnn["status"] == "not available"
    assert cudnn["note"]


def test_groups_name_the_packages_backends(attn, capsys):
    _, plan = attn.parse("", ["--device", "cpu", "--only", "kernels,released,own"])
    own, kernels = attn.opponents.own_backends(), attn.opponents.kernels()
    assert set(kernels) == set(own) - {"eager", "sdpa"}
    assert plan.names == tuple(dict.fromkeys([*kernels, "released", *own]))


def test_without_leaves_out(attn, capsys):
    _, plan = attn.parse("", ["--device", "cpu", "--only", "kernels,sdpa", "--without", "gluon_all,sdpa"])
    assert plan.names == tuple(name for name in attn.opponents.kernels() if name != "gluon_all")
    assert attn.parse("", ["--device", "cpu", "--without", "gluon_all"])[1].absent == []
    for arguments, words in ((["--only", "sdpa", "--without", "own"], "nothing is left"), (["--without", "x"], "x is")):
        with pytest.raises(SystemExit, match="2"):
            attn.parse("", ["--device", "cpu", *arguments])
        assert f"--without: {words}" in capsys.readouterr().err


def test_every_backend_of_the_package_appears_by_itself(load, monkeypatch):
    """And a choice of backward is a contender of its own, in the direction that it is about."""
    opponents, seen = load("opponents"), []
    backwards = ("triton", "new", "recompute")
    contract = SimpleNamespace(BACKENDS=(), NAMES=("eager", "triton", "new"), BACKWARDS=backwards)
    monkeypatch.setattr(opponents, "_contract", lambda: contract)
    monkeypatch.setattr(xdyna_kernels, "reference_attention", lambda *tensors, **options: seen.append(options))
    assert opponents.own_backends() == ("eager", "triton", "new", "triton-recompute")
    assert opponents.kernels() == ("triton", "new", "triton-recompute")
    for name in opponents.own_backends():
        opponents.build(name)()
    assert seen == [
        {"backend": "eager"},
        {"backend": "triton", "backward": "triton"},
        {"backend": "new", "backward": "new"},
        {"backend": "triton", "backward": "recompute"},
    ]
    contract.BACKWARDS = ("triton", "recompute")  # as before "new" had its own
    opponents.build("new")()
    assert seen[-1] == {"backend": "new", "backward": "triton"}
    assert not opponents.runs_in("triton-recompute", "forward")
    assert opponents.runs_in("triton-recompute", "forward+backward")
    assert all(opponents.runs_in(name, "forward") for name in ("triton", "folded-flash", "released"))
    del contract.BACKWARDS  # as before there was a choice
    assert opponents.own_backends() == contract.NAMES
    opponents.build("triton")()
    assert seen[-1] == {"backend": "triton"}

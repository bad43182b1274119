"""bench/compare.py on records made up here: noise does not fail it, a real regression does."""

import importlib
import json
import random
import statistics
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TIMES = {"eager": 40.0, "sdpa": 12.0, "released": 14.0, "folded-flash": 12.5}
LEVELS = [(576, 40), (144, 80), (36, 160)]


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("compare")


def record(seed: int, noise: float = 0.0, drift: float = 1.0, slower: dict[str, float] | None = None, rounds: int = 15):
    """A run whose rounds vary by `noise` each, on a machine that slows down by `drift` from first to last round."""
    rng, rows = random.Random(seed), []
    for tokens, channels in LEVELS:
        load = [drift ** (i / (rounds - 1)) * rng.uniform(1, 1 + noise) for i in range(rounds)]
        for backend, ms in TIMES.items():
            ms *= (slower or {}).get(backend, 1.0)
            samples = [ms * factor * rng.uniform(1 - noise, 1 + noise) for factor in load]
            low, *_, high = statistics.quantiles(samples, n=5, method="inclusive")
            shape = {"B": 1, "F": 5, "N": tokens, "H": 8, "D": channels}
            row = {"shape": shape, "direction": "forward", "dtype": "fp32", "backend": backend, "samples_ms": samples}
            rows.append(row | {"status": "ok", "ms": statistics.median(samples), "ms_p20": low, "ms_p80": high})
    return {"machine": {"device": "a CPU"}, "rows": rows}


@pytest.fixture
def run(compare, tmp_path, capsys):
    """Compares two records; returns the exit code and what was printed."""

    def run(base, head, *arguments):
        for name, content in (("base", base), ("head", head)):
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"{name}.json").write_text(text)
        code = compare.main([str(tmp_path / "base.json"), str(tmp_path / "head.json"), *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("arguments", [(), ("--ratio-to", "released")])
def test_noise_does_not_fail(run, noise, arguments):
    for seed in range(20):
        code, text = run(record(2 * seed, noise), record(2 * seed + 1, noise), *arguments)
        assert code == 0, text
        assert ("no worse than noise" in text) == (noise == 0.2)


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("arguments", [(), ("--ratio-to", "released")])
def test_ten_percent_fail(run, noise, arguments):
    for seed in range(20):
        code, text = run(record(2 * seed, noise), record(2 * seed + 1, noise, slower={"sdpa": 1.1}), *arguments)
        assert code == 1
        slower = [line for line in text.splitlines() if "SLOWER" in line]
        assert slower
        assert all(" sdpa " in line for line in slower)


def test_four_percent_do_not_fail(run):
    assert run(record(0), record(0, slower={"sdpa": 1.04}))[0] == 0


def test_ratios_see_through_a_machine_that_slows_down(run):
    """Five times slower throughout the run, as on shared cores: times fail everything, ratios only what is slower."""
    calm, loaded = record(0, 0.01), record(1, 0.01, drift=5.0)
    assert run(calm, loaded)[0] == 1
    assert run(calm, loaded, "--ratio-to", "released")[0] == 0
    worse = record(1, 0.01, drift=5.0, slower={"sdpa": 1.1})
    code, text = run(calm, worse, "--ratio-to", "released")
    assert code == 1
    assert text.count("SLOWER") == len(LEVELS)


def test_ratios_without_rounds_fall_back_to_medians(run):
    base, head = record(0, 0.005), record(1, 0.005, slower={"sdpa": 1.1})
    for row in base["rows"] + head["rows"]:
        del row["samples_ms"]
    assert run(base, base, "--ratio-to", "released")[0] == 0
    assert run(base, head, "--ratio-to", "released")[0] == 1


def test_faster_is_said_and_passes(run):
    code, text = run(record(0), record(0, slower={"sdpa": 0.8}))
    assert code == 0
    assert text.count("faster") == len(LEVELS)


@pytest.mark.parametrize("arguments", [(), ("--ratio-to", "released")])
@pytest.mark.parametrize("how", ["gone", "not available", "FAIL"])
def test_missing_and_wrong_rows_fail(run, how, arguments):
    head = record(0)
    if how == "gone":
        del head["rows"][1]
    else:
        head["rows"][1] |= {"status": how, "ms": None, "note": "the reason"}
    code, text = run(record(0), head, *arguments)
    assert code == 1
    assert ("PARITY FAILED" if how == "FAIL" else "MISSING") in text
    assert how == "gone" or "the reason" in text


def test_parity_failures_of_the_unit_and_of_new_rows_fail(run):
    head = record(0)
    head["rows"][2] |= {"status": "FAIL", "ms": None}  # of "released"
    code, text = run(record(0), head, "--ratio-to", "released")
    assert code == 1
    assert text.count("PARITY FAILED") == 1
    assert text.count("MISSING released failed parity") == len(TIMES) - 1
    for row in head["rows"]:
        row |= {"status": "FAIL", "ms": None}
    code, text = run(record(0), head)
    assert code == 1
    assert text.count("PARITY FAILED") == len(head["rows"])
    head = record(0)
    head["rows"].append(head["rows"][0] | {"backend": "triton", "status": "FAIL", "ms": None})
    assert run(record(0), head)[0] == 1


def test_new_rows_and_rows_never_timed_pass(run):
    base, head = record(0), record(0)
    head["rows"].append(head["rows"][0] | {"backend": "triton"})
    for side in (base, head):
        side["rows"].append(side["rows"][0] | {"backend": "flex", "status": "not available", "ms": None})
    code, text = run(base, head)
    assert code == 0
    assert "new" in text
    assert "not timed" in text


def test_further_pairs_must_agree(compare, tmp_path, capsys):
    slower, lost = record(3, slower={"sdpa": 1.1}), record(3)
    del lost["rows"][0]
    files = {"base": record(0), "same": record(1), "slower": slower, "lost": lost}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))

    def code(*names):
        return compare.main([str(tmp_path / name) for name in names])

    assert code("base", "slower", "base", "slower") == 1
    capsys.readouterr()
    assert code("base", "slower", "base", "same") == code("base", "same", "base", "slower") == 0
    assert "slower in 1 of 2 pairs" in capsys.readouterr().out
    assert code("base", "lost", "base", "same") == code("base", "same", "base", "lost") == 1
    with pytest.raises(SystemExit, match="2"):
        code("base", "same", "base")


@pytest.mark.parametrize("sides", [["base"], ["head"], ["base", "head"]])
@pytest.mark.parametrize("how", ["not timed", "not there"])
def test_a_pair_that_did_not_time_a_row_does_not_clear_it(compare, tmp_path, how, sides):
    pair = {"base": record(1), "head": record(2, slower={"sdpa": 2.0})}
    for side in sides:
        lost = next(row for row in pair[side]["rows"] if row["backend"] == "sdpa")
        if how == "not timed":
            lost |= {"ms": None, "ms_p20": None, "ms_p80": None}
        else:
            pair[side]["rows"].remove(lost)
    files = {"first": record(0), "slower": record(3, slower={"sdpa": 2.0}), **pair}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert compare.main([str(tmp_path / name) for name in files]) == 1


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "{",
        "[]",
        "3",
        '{"rows": []}',
        '{"rows": [], "machine": {"device": "a CPU"}}',
        '{"rows": [{"ms": 1}], "machine": {"device": "a CPU"}}',
        '{"rows": [3], "machine": {"device": "a CPU"}}',
    ],
)
def test_broken_files_are_named_in_one_line(run, broken):
    for base, head, name in ((broken, record(0), "base.json"), (record(0), broken, "head.json")):
        code, text = run(base, head)
        assert code == 2
        assert name in text
        assert len(text.splitlines()) == 1


@pytest.mark.parametrize("times", [(-1.0, 1.0, 2.0), (2.0, 1.0, 3.0), (1.0, float("nan"), 2.0), ("a", 1.0, 2.0)])
def test_impossible_times_are_refused(run, times):
    head = record(0)
    head["rows"][0] |= dict(zip(("ms_p20", "ms", "ms_p80"), times, strict=True))
    assert run(record(0), head)[0] == 2


@pytest.mark.parametrize("ms", [0, 0.0, -1.0, float("nan"), float("inf"), "3", None, [1.0]])
@pytest.mark.parametrize("arguments", [(), ("--ratio-to", "released")])
def test_impossible_rounds_are_refused_in_one_line(run, ms, arguments):
    for place in (1, 2):  # what is compared, and what it is a multiple of
        head = record(0)
        head["rows"][place]["samples_ms"][3] = ms
        code, text = run(record(0), head, *arguments)
        assert code == 2
        assert "head.json: a round of" in text
        assert len(text.splitlines()) == 1


def test_what_cannot_be_compared_is_refused(run, compare, tmp_path, capsys):
    assert compare.main([str(tmp_path / "nowhere.json")] * 2) == 2
    assert "nowhere.json" in capsys.readouterr().err
    other = record(0) | {"machine": {"device": "a GPU"}}
    assert run(record(0), other)[0] == 2
    assert run(record(0), other, "--ratio-to", "released")[0] == 0
    two = record(0) | {"machine": {"device": "a CPU", "threads": 2}}
    assert run(record(0), two)[0] == 2
    code, text = run(record(0), record(0), "--ratio-to", "unheard-of")
    assert code == 2
    assert "unheard-of" in text
    twice = record(0)
    twice["rows"].append(twice["rows"][0])
    assert run(twice, record(0))[0] == 2

"""bench/ci.py on times that were measured: the real kernels with a slowdown planted, and recorded spreads, drawn from
again and again to count false alarms and misses."""

import importlib
import json
import random
import shutil
from pathlib import Path
from types import ModuleType

from ci_repository import git

ROOT = Path(__file__).parents[2]
SPREADS = json.loads((Path(__file__).parent / "golden" / "spreads.json").read_text())
SMALL = "--device cpu --only sdpa,released --shape 48x40 --frames 2 --direction forward --repeats 7 --no-compile-report"


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

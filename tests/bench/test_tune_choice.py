"""Which tile --tune chooses for one entry of a table, where tune_stand_in.py decides how fast and how right each is."""

from types import SimpleNamespace

import pytest
import torch
import xdyna_kernels
from tune_stand_in import (
    BROKEN,
    CHIP,
    CRASHES,
    FAST,
    GRID,
    MIDDLE,
    MS,
    SLOW,
    TOO_LARGE,
    WRONG,
    attention,
    choose,
    plan,
)

pytest.importorskip("triton", reason="candidates are compiled by triton")


def test_a_tile_serves_every_shape_of_its_entry_and_counts_as_often(load, tune, table, monkeypatch):
    monkeypatch.setattr(load("gpu_stand"), "LEVELS", {(20, 8): 5, (12, 8): 1})
    stand = tune.GpuStand(plan(load, tokens=(20, 12)), torch.bfloat16)
    assert stand.clock(attention(load), [FAST, SLOW], 1) == [6.0, 54.0]
    assert stand.clock(attention(load, 96), [FAST, SLOW], 1) == [0.0, 0.0]  # no head of this plan is so wide


def test_a_present_tile_stays_unless_beaten_beyond_noise(load, tune, table, monkeypatch):
    entry = attention(load)
    entry.put(MIDDLE)
    stand = tune.GpuStand(plan(load), torch.bfloat16)
    for ms, winner in ((1.99, MIDDLE), (1.9, FAST)):
        monkeypatch.setitem(MS, FAST, ms)
        assert choose(load, entry, GRID, stand)[0] == winner


@pytest.mark.parametrize("present", [WRONG, CRASHES, TOO_LARGE, BROKEN])
def test_a_present_tile_that_cannot_be_used_is_replaced(load, tune, present):
    entry = attention(load)
    entry.put(present)
    stand = tune.GpuStand(plan(load), torch.bfloat16)
    assert choose(load, entry, GRID, stand)[0] == FAST
    with pytest.raises(tune.TuneError, match=r"no tile of 4 can be used"):
        choose(load, entry, [WRONG, CRASHES, TOO_LARGE, BROKEN], stand)


def test_a_fast_tile_that_does_not_compile_for_all_its_entry_serves_is_passed_over(load, tune, monkeypatch):
    """It is right and fast on the plan's shapes; with tails at 48 channels, say, it would spill."""
    entry, gate = attention(load), load("gate")
    monkeypatch.setattr(gate.Gate, "vet", lambda self, entry, tile: "spills" if tile == FAST else "")
    winner, trials = choose(load, entry, GRID, tune.GpuStand(plan(load), torch.bfloat16))
    assert winner == MIDDLE
    assert [(trial.ms, trial.note) for trial in trials if trial.tile == FAST] == [(1.0, "spills")]
    monkeypatch.setattr(gate.Gate, "vet", lambda self, entry, tile: "spills")
    with pytest.raises(tune.TuneError, match=r"can be used; of the present one: spills"):
        choose(load, entry, GRID, tune.GpuStand(plan(load), torch.bfloat16))


def test_slow_tiles_are_timed_less_often(load, tune, monkeypatch):
    asked = []

    def clock(self, entry, candidates, rounds):
        asked.append((rounds, candidates))
        return [MS.get(tile, 5.0) for tile in candidates]

    entry = attention(load)
    present = entry.get()
    monkeypatch.setattr(tune.GpuStand, "clock", clock)
    monkeypatch.setitem(MS, MIDDLE, 1.1)
    assert choose(load, entry, GRID, tune.GpuStand(plan(load), torch.bfloat16))[0] == FAST
    few, many = (set(candidates) for _, candidates in asked)
    assert asked[0][0] < asked[1][0]
    assert few == {present, SLOW, FAST, MIDDLE}
    assert many == {present, FAST, MIDDLE}  # the present one's place is to be known, slow as it may be


def test_entries_of_the_backward_are_judged_by_gradients(load, tune, monkeypatch):
    """A tile whose result is right and whose gradients are not is never chosen."""
    entry = load("tile_table").Entry("BACKWARD_KEYS", CHIP, "half", 48)

    def build(name):
        def contender(*tensors):
            out = xdyna_kernels.reference_attention(*tensors, backend="sdpa")
            return out / 2 + out.detach() / 2 if entry.get() == WRONG else out

        return contender

    def clock(calls, device, repeats, seed):
        assert len(calls) == 2
        for call in calls.values():
            call()
        return {name: SimpleNamespace(median=ms) for name, ms in zip(calls, (2.0, 1.0), strict=True)}

    stand = load("gpu_stand")
    monkeypatch.setattr(stand.opponents, "build", build)
    monkeypatch.setattr(stand, "interleaved", clock)
    winner, trials = choose(load, entry, [WRONG, FAST], tune.GpuStand(plan(load), torch.bfloat16))
    assert winner == FAST
    assert {trial.tile: trial.ms for trial in trials} == {entry.get(): 2.0, WRONG: None, FAST: 1.0}

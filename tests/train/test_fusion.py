"""Batches: their shares, who draws which clip, and that nothing but the place decides what is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from xdyna_model.errors import InputError
from xdyna_train.clips import Example, Kind
from xdyna_train.config import PRESETS, Stage
from xdyna_train.fusion import FusionDataset, Place, collate, places, plan
from xdyna_train.puppet_source import PuppetSource

SMOKE = replace(PRESETS["smoke"], stages=(Stage("only", ("adapter",), frames=2, batch=4, human_share=0.5, steps=1),))


def preprocess(picture: np.ndarray) -> torch.Tensor:
    return torch.ones(3, 4, 4)


def dataset(source=None, **changes) -> FusionDataset:
    return FusionDataset(source or PuppetSource(64, 64), replace(SMOKE, **changes), 3, preprocess)


@given(st.integers(1, 24), st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 0.95), st.integers(0, 1000))
@example(21, 0.0, 0.7610276974622885, 0.16361555631458413, 344)  # 17 clips at 999, one of them by chance
def test_a_batch_has_its_shares(batch: int, humans: float, start: float, late: float, step: int) -> None:
    stage = Stage("any", (), frames=1, batch=batch, human_share=humans, steps=1)
    drawn = [plan(stage, Place(0, step, clip), 5, start, late) for clip in range(batch)]
    assert abs(sum(kind == "human" for kind, _ in drawn) - humans * batch) < 1 + 1e-6
    # Timestep 999 is also one of the late ones, of which there are none here.
    asked = [plan(stage, Place(0, step, clip), 5, start, 1e-9)[1] for clip in range(batch)]
    assert abs(asked.count(999) - start * batch) < 1 + 1e-6
    late_or_last = start + (1 - start) * late
    assert abs(sum(timestep >= 600 for _, timestep in drawn) - late_or_last * batch) < 1 + 1e-6
    assert all(0 <= timestep < 1000 for _, timestep in drawn)


def test_timesteps_are_uniform_where_late_ones_have_their_natural_share() -> None:
    stage = Stage("any", (), frames=1, batch=10, human_share=0.5, steps=1)
    drawn = [plan(stage, Place(0, step, clip), 5, 0.0, 0.4)[1] for step in range(200) for clip in range(10)]
    counts = np.histogram(drawn, bins=10, range=(0, 1000))[0]
    assert counts.min() == counts.max() == 200  # a tenth of each batch in each tenth of the range


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.integers(0, 5))
def test_the_processes_share_a_batch(world: int, accumulate: int, each: int, first: int) -> None:
    batch = world * accumulate * each
    steps = range(first, first + 2)
    shares = [list(places(1, steps, batch, rank, world, accumulate)) for rank in range(world)]
    assert all(len(share) == 2 * accumulate and {len(micro) for micro in share} == {each} for share in shares)
    drawn = sorted(place for share in shares for micro in share for place in micro)
    assert drawn == [Place(1, step, clip) for step in steps for clip in range(batch)]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 3), st.integers(0, 10**6))
def test_the_place_alone_decides(clip: int, step: int) -> None:
    data = dataset()
    first = data[Place(0, step, clip)]
    np.random.seed(step % 1000)  # noqa: NPY002 - the global state is what must not matter
    torch.manual_seed(step)
    data[Place(0, step + 1, clip)]
    again, other = dataset()[Place(0, step, clip)], data[Place(0, step, (clip + 1) % 4)]
    for name in ("reference", "frames", "pose", "face", "timesteps", "noise_seeds"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.frames, other.frames)
    assert not torch.equal(first.noise_seeds, other.noise_seeds)


class Watched:
    """The same clip each time; what the numbers it is given begin with is kept."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []
        self.example = PuppetSource(32, 32).draw("human", 1, np.random.default_rng(0))

    def draw(self, kind: Kind, num_frames: int, rng: np.random.Generator) -> Example:
        self.seen.append(rng.random(8))
        return self.example


@pytest.mark.parametrize("clip", [0, 1])
def test_what_a_clip_shows_does_not_tell_its_timestep(clip: int) -> None:
    """Or a model learns to see some things through much noise and others through little."""
    source, stage = Watched(), replace(SMOKE.stages[0], batch=2, human_share=1.0)
    data = dataset(source, stages=(stage,))
    timesteps = [data[Place(0, step, clip)].timesteps.item() for step in range(300)]
    late = np.array(timesteps) >= 600
    for part in (late, ~late):  # in each, uniform
        drawn = np.corrcoef(np.array(timesteps)[part], np.array(source.seen)[part].T)[0, 1:]
        assert np.abs(drawn).max() < 0.35


def test_scenes_have_blank_maps_and_people_have_not() -> None:
    batch = collate([dataset(person_weight=1.0, face_weight=2.0)[Place(0, 0, clip)] for clip in range(4)])
    assert batch.human.any()
    assert not batch.human.all()
    for clip, human in enumerate(batch.human.tolist()):
        assert bool(batch.pose[clip].any()) == bool(batch.face[clip].any()) == human
        assert (batch.importance[clip].max() > 1) == human
        assert batch.importance[clip].min() == 1
    assert {x.dtype for x in (batch.reference, batch.frames, batch.pose, batch.face)} == {torch.uint8}
    assert batch.frames.shape == (4, 2, 3, 64, 64)
    assert batch.face.shape == (4, 2, 6, 64, 64)


@pytest.mark.parametrize(("share", "left"), [(0.0, 1.0), (1.0, 0.0)])
def test_dropped_conditions_are_black(share: float, left: float) -> None:
    assert dataset(drop_condition=share)[Place(0, 0, 0)].clip_pixels.mean() == left


class Damaged(PuppetSource):
    """Every clip but each third is damaged."""

    count = 0

    def draw(self, kind: Kind, num_frames: int, rng: np.random.Generator) -> Example:
        self.count += 1
        example = super().draw(kind, num_frames, rng)
        if self.count % 3:
            raise InputError(f"clip {example.name}: is damaged")
        return example


def test_damaged_clips_are_skipped_and_named() -> None:
    first, again = (dataset(Damaged(64, 64))[Place(0, 0, 0)] for _ in range(2))
    assert len(first.skipped) == 2
    assert first.skipped == again.skipped
    assert all("is damaged" in line for line in first.skipped)
    assert torch.equal(first.frames, again.frames)


def test_a_source_without_a_whole_clip_ends_in_one_line() -> None:
    class Broken(PuppetSource):
        def draw(self, kind: Kind, num_frames: int, rng: np.random.Generator) -> Example:
            raise InputError("clip 7: is damaged")

    with pytest.raises(InputError, match="20 clips in a row cannot be read, the last: clip 7"):
        dataset(Broken(64, 64))[Place(0, 0, 0)]

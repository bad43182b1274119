"""Cuts are found to the frame; what only looks like one is not."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdyna_train import scene_cuts
from xdyna_train.puppets import KINDS, sample_clip
from xdyna_train.scene_cuts import distance, find_cuts, signature

FPS = 8.0


def dance(seed: int, kind: str, num_frames: int = 20) -> list[np.ndarray]:
    return [frame.rgb for frame in sample_clip(np.random.default_rng(seed), num_frames, 112, 64, kind)]


def cuts(frames: list[np.ndarray], fps: float = FPS) -> list[int]:
    return find_cuts(np.stack([signature(frame) for frame in frames]), fps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dance_before_any_scene_has_no_cut(kind: str) -> None:
    assert cuts(dance(3, kind)) == []


def test_planted_cuts_are_found_to_the_frame() -> None:
    scenes = [dance(seed, kind, 9 + seed) for seed, kind in enumerate(KINDS)]
    planted = np.cumsum([len(scene) for scene in scenes])[:-1].tolist()
    assert len(planted) == len(KINDS) - 1
    assert cuts([frame for scene in scenes for frame in scene]) == planted


@pytest.mark.parametrize("fps", [8.0, 25.0, 60.0])
def test_a_flash_is_no_cut_but_a_cut_beside_it_is(fps: float) -> None:
    """A flash of an eighth of a second in a dance slowed down to `fps`."""
    repeat = round(fps / FPS)
    before, after = (np.repeat(dance(seed, kind), repeat, axis=0) for seed, kind in ((1, "ocean"), (2, "room")))
    flash = slice(10 * repeat, 11 * repeat)
    before[flash] = 255 - (255 - before[flash]) // 8
    assert cuts(list(before), fps) == []
    assert cuts([*before, *after], fps) == [len(before)]


def test_a_pan_is_no_cut() -> None:
    wide = np.concatenate([dance(seed, kind, 1)[0] for seed, kind in enumerate(KINDS)], axis=1)
    frames = [wide[:, left : left + 64] for left in range(0, wide.shape[1] - 64, 6)]
    assert cuts(frames, fps=25) == []


def test_strobes_are_no_cuts() -> None:
    frames = dance(5, "room", 40)
    assert cuts([frame // 4 if index % 4 < 2 else frame for index, frame in enumerate(frames)], fps=25) == []


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_distance_is_a_distance(a: int, b: int) -> None:
    first, second = (
        signature(np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)) for seed in (a, b)
    )
    assert distance(first, first) == 0
    assert distance(first, second) == distance(second, first)
    assert 0 <= distance(first, second) <= 1


def test_black_and_white_are_as_far_apart_as_can_be() -> None:
    black, white = (signature(np.full((90, 160, 3), level, np.uint8)) for level in (0, 255))
    assert distance(black, white) == 1
    assert distance(black, signature(np.full((90, 160, 3), 6, np.uint8))) < 0.2  # a little more light


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_very_short_videos(num_frames: int) -> None:
    assert cuts(dance(1, "ocean", num_frames)) == []


# Long videos


def scenes_of_noise(num_frames: int, seed: int) -> np.ndarray:
    """[F, 384] float16: signatures that jump here and there, and else change a little."""
    rng = np.random.default_rng(seed)
    scene = rng.random((num_frames, 384), np.float32)[np.cumsum(rng.random(num_frames) < 0.1) % num_frames]
    return (scene + rng.normal(0, 0.02, scene.shape)).astype(np.float16)


def in_blocks(block: int, signatures: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray, list[int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xdyna_train.scene_cuts._BLOCK", block)
        closest = scene_cuts._closest_across(signatures, max(2, round(fps / 5)))
        return closest, scene_cuts._usual(signatures, max(1, round(fps))), find_cuts(signatures, fps)


def assert_blocks_change_nothing(block: int, signatures: np.ndarray, fps: float) -> None:
    whole, parts = in_blocks(len(signatures), signatures, fps), in_blocks(block, signatures, fps)
    assert whole[0].tobytes() == parts[0].tobytes()
    assert whole[1].tobytes() == parts[1].tobytes()
    assert whole[2] == parts[2]


@pytest.mark.parametrize("fps", [8.0, 30.0])
def test_a_long_video_has_the_same_cuts_in_small_blocks(fps: float) -> None:
    signatures = scenes_of_noise(3000, seed=1)
    assert_blocks_change_nothing(64, signatures, fps)
    assert len(find_cuts(signatures, fps)) > 50


@given(st.integers(2, 70), st.integers(1, 35), st.sampled_from([8.0, 25.0, 60.0]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_blocks_of_any_length_change_nothing(num_frames: int, block: int, fps: float, seed: int) -> None:
    assert_blocks_change_nothing(block, scenes_of_noise(num_frames, seed), fps)


def test_cuts_take_less_memory_than_the_signatures() -> None:
    signatures = np.zeros((40_000, 384), np.float16)
    tracemalloc.start()
    try:
        find_cuts(signatures, 60.0)
        assert tracemalloc.get_traced_memory()[1] < signatures.nbytes
    finally:
        tracemalloc.stop()

"""Flow is measured as the world makes it, and motion, flicker and rest are told apart."""

import cv2
import numpy as np
import pytest
from xdyna_train.metrics.intervals import bootstrap, correlation
from xdyna_train.metrics.motion import apart, flicker, flowing, measure_flow, motion_energy, motion_followed
from xdyna_train.puppets import Identity, Motion, Scene, render_clip

HEIGHT, WIDTH, FRAMES = 112, 64, 16


def clip(kind: str, seed: int) -> tuple[Scene, np.ndarray, np.ndarray]:
    """The scene, and its frames with someone in front and without, uint8."""
    rng = np.random.default_rng(seed)
    scene, identity, motion = Scene.sample(kind, rng), Identity.sample(rng), Motion.sample(rng)
    times = rng.uniform(0, 40) + np.arange(FRAMES)
    with_figure, alone = (
        np.stack([frame.rgb for frame in render_clip(scene, *who, times.tolist(), HEIGHT, WIDTH)])
        for who in ((identity, motion), (None, None))
    )
    return scene, with_figure, alone


def seen_flow(scene: Scene, frames: np.ndarray, where: np.ndarray) -> tuple[float, float]:
    left, top, right, bottom = scene.window(HEIGHT, WIDTH)
    return measure_flow(frames[:, top:bottom, left:right] / np.float32(255), where[:, top:bottom, left:right])


@pytest.mark.parametrize("kind", ["waterfall", "rain", "clouds"])
@pytest.mark.parametrize("seed", range(3))
def test_the_flow_of_the_truth_is_the_world_s(kind: str, seed: int) -> None:
    scene, frames, alone = clip(kind, seed)
    where = flowing(frames, alone)
    speed = np.hypot(*scene.flow(HEIGHT))
    assert np.hypot(*np.subtract(seen_flow(scene, frames, where), scene.flow(HEIGHT))) < 0.1 * speed
    backwards = seen_flow(scene, frames[::-1], where[::-1])
    assert np.hypot(*np.add(backwards, scene.flow(HEIGHT))) < 0.1 * speed


@pytest.mark.parametrize("shift", [(0, 3), (-2, 0), (4, -5), (0, 0)])
def test_a_planted_shift_is_measured(shift: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    sheet = rng.random((1, 60, 50, 3)).astype(np.float32)
    frames = np.concatenate([np.roll(sheet, (k * shift[1], k * shift[0]), (1, 2)) for k in range(12)])
    still = rng.random((60, 50, 3)).astype(np.float32)
    where = np.ones(frames.shape[:3], bool)
    assert measure_flow(frames + 2 * still, where) == pytest.approx(shift, abs=0.1)


def test_what_is_left_out_does_not_count() -> None:
    rng = np.random.default_rng(2)
    sheet = rng.random((1, 60, 50, 3)).astype(np.float32)
    frames = np.concatenate([np.roll(sheet, 2 * k, 1) for k in range(12)])
    where = np.ones(frames.shape[:3], bool)
    where[:, 20:, 15:40] = False
    frames[:, 20:, 15:40] = np.concatenate([np.roll(sheet, -3 * k, 1) for k in range(12)])[:, 20:, 15:40]
    assert measure_flow(frames, where) == pytest.approx((0, 2), abs=0.1)


def test_the_figure_and_its_surroundings_are_left_out() -> None:
    _, frames, alone = clip("clouds", 0)
    where = flowing(frames, alone, margin=2)
    changed = (frames != alone).any(-1)
    assert not (where & changed).any()
    assert not (where & np.roll(changed, 2, 1)).any()
    assert 0.1 < where.mean() < 0.7


def test_in_a_room_all_but_the_figure_and_its_surroundings_is_apart() -> None:
    _, frames, alone = clip("room", 0)
    assert not flowing(frames, alone).any()
    where = apart(frames, alone, margin=2)
    changed = (frames != alone).any(-1)
    near = np.array([cv2.dilate(part.astype(np.uint8), np.ones((5, 5), np.uint8)) for part in changed], bool)
    assert np.array_equal(where, ~near)


def test_flicker_is_noise_where_the_truth_rests_and_not_the_figure() -> None:
    _, frames, _ = clip("room", 0)
    truth = frames / np.float32(255)
    assert flicker(truth, truth) == 0
    noise = np.random.default_rng(0).normal(0, 0.02, truth.shape).astype(np.float32)
    # Two independent normal numbers differ by 2 / sqrt(pi) standard deviations on average.
    assert flicker(truth + noise, truth) == pytest.approx(0.02 * 2 / np.sqrt(np.pi), rel=0.02)
    assert flicker(truth[::-1], truth) > 0


def test_how_much_of_the_truth_s_motion_is_there() -> None:
    """The flow's size does not tell a faint motion from a whole one, and what flickers beside it misleads it."""
    rng = np.random.default_rng(3)
    sheet, still = rng.random((1, 60, 50, 3)), rng.random((1, 60, 50, 3))
    truth = np.concatenate([np.roll(sheet, 2 * k, 1) for k in range(FRAMES)]).astype(np.float32)
    faint = 0.2 * truth + 0.5
    pulsing = (faint + rng.normal(0, 0.5, (FRAMES, 1, 1, 1)) * still).astype(np.float32)
    where = rng.random(truth.shape[:3]) < 0.8
    assert measure_flow(faint, where) == pytest.approx((0, 2), abs=0.1)
    assert measure_flow(pulsing, where) != pytest.approx((0, 2), abs=0.3)
    assert motion_followed(truth, truth, where) == pytest.approx(1)
    assert motion_followed(faint, truth, where) == pytest.approx(0.2)
    assert motion_followed(pulsing, truth, where) == pytest.approx(0.2, abs=0.02)
    other = np.concatenate([np.roll(still, 2 * k, 1) for k in range(FRAMES)])
    assert motion_followed(other, truth, where) == pytest.approx(0, abs=0.05)


def test_only_what_is_looked_at_counts_and_may_move() -> None:
    rng = np.random.default_rng(4)
    truth, result = rng.random((2, 5, 6, 7, 3))
    where = np.ones((5, 6, 7), bool)
    where[:, :, 3:] = False
    result[:, :, :3] = truth[:, :, :3] + rng.random((6, 3, 3))
    assert motion_followed(result, truth, where) == pytest.approx(1)
    assert np.isnan(motion_followed(result, truth[:1].repeat(5, 0), where))
    assert motion_followed(result[:1].repeat(5, 0), truth, where) == pytest.approx(0, abs=1e-9)


def test_energy_is_the_mean_change() -> None:
    frames = np.zeros((3, 4, 4, 3), np.float32)
    frames[1] = 0.3
    where = np.ones((3, 4, 4), bool)
    assert motion_energy(frames, where) == pytest.approx(0.3)
    where[2] = False
    frames[2] = 1.0
    assert motion_energy(frames, where) == pytest.approx(0.3)
    assert np.isnan(motion_energy(frames, np.zeros((3, 4, 4), bool)))


def test_the_interval_of_a_mean_is_the_textbook_s() -> None:
    values = np.random.default_rng(3).normal(0, 1, 400)
    intervals = bootstrap(lambda index: [float(values[index].mean()), float("nan")], 400, seed=0)
    low, high = intervals[0]
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    assert np.array_equal(intervals[0], bootstrap(lambda index: [float(values[index].mean())], 400, seed=0)[0])
    assert np.isnan(intervals[1]).all()


def test_a_mean_of_one_known_case_has_no_interval() -> None:
    """In each resample that holds the case, it is the same."""
    one, two = np.full((2, 30), np.nan)
    one[7], two[:2] = 5, (1, 2)

    def means(index: np.ndarray) -> list[float]:
        known = [values[index][np.isfinite(values[index])] for values in (one, two)]
        return [float(np.mean(values)) if len(values) else float("nan") for values in known]

    intervals = bootstrap(means, 30, seed=0)
    assert np.isnan(intervals[0]).all()
    assert intervals[1].tolist() == [1, 2]


def test_correlation_agrees_with_numpy() -> None:
    first, second = np.random.default_rng(4).random((2, 5, 7))
    assert correlation(first, second) == pytest.approx(np.corrcoef(first.ravel(), second.ravel())[0, 1])
    assert correlation(first, np.ones_like(first)) == 0

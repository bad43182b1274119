"""The puppet world: what it says of its pictures is true of them."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
from xdyna_model.face_map import draw_face
from xdyna_train.puppets import (
    DRIFTING,
    KINDS,
    Identity,
    Motion,
    PuppetFrame,
    Scene,
    render_clip,
    render_face,
    render_frame,
    sample_clip,
)

HEIGHT, WIDTH = 112, 64


def standing(
    mouth: float = 0.0, smile: float = 0.5, eyes: float = 0.85, gaze: float = 0.0, brow: float = 0.0
) -> Motion:
    return replace(Motion.standing(), face_rest=(mouth, smile, eyes, gaze, 0.0, brow))


def someone(seed: int, t: float = 3.0, size: tuple[int, int] = (HEIGHT, WIDTH), kind: str = "room") -> PuppetFrame:
    rng = np.random.default_rng(seed)
    scene, identity, motion = Scene.sample(kind, rng), Identity.sample(rng), Motion.sample(rng)
    return render_frame(scene, identity, motion, t, *size)


def measured_shift(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """(right, down) by which `after` fits `before` best, by phase correlation. [H, W, 3] each."""
    first, second = (picture.mean(-1) for picture in (before, after))
    window = np.outer(np.hanning(first.shape[0]), np.hanning(first.shape[1]))
    spectra = [np.fft.fft2((picture - picture.mean()) * window) for picture in (first, second)]
    cross = np.conj(spectra[0]) * spectra[1]
    peak = np.fft.ifft2(cross / (np.abs(cross) + 1e-9)).real
    down, right = np.unravel_index(peak.argmax(), peak.shape)
    height, width = peak.shape
    return int((right + width // 2) % width - width // 2), int((down + height // 2) % height - height // 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bytes(kind: str) -> None:
    first, second, other = (
        np.stack([frame.rgb for frame in sample_clip(np.random.default_rng(seed), 2, 80, 48, kind)])
        for seed in (5, 5, 6)
    )
    assert first.dtype == np.uint8
    assert first.shape == (2, 80, 48, 3)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_the_order_of_drawing_does_not_matter() -> None:
    frames = [someone(1, t, kind="ocean").rgb for t in (0.0, 5.0)]
    again = [someone(1, t, kind="ocean").rgb for t in (5.0, 0.0)]
    assert np.array_equal(frames[0], again[1])
    assert np.array_equal(frames[1], again[0])


@pytest.mark.parametrize("seed", range(4))
def test_any_size_shows_the_same_world(seed: int) -> None:
    small, large = someone(seed, size=(80, 48)), someone(seed, size=(240, 144))
    assert small.person is not None
    assert large.person is not None
    for part in ("body", "hands", "face"):
        points, larger = getattr(small.person, part), getattr(large.person, part)
        np.testing.assert_allclose(points[..., :2] * 3, larger[..., :2], atol=1e-3)
        assert (points[..., 2] == 1).all()
    shrunk = large.rgb.reshape(80, 3, 48, 3, 3).mean((1, 3))
    assert np.abs(shrunk - small.rgb).mean() < 5


@pytest.mark.parametrize("seed", range(8))
def test_the_joints_and_the_face_lie_on_the_figure(seed: int) -> None:
    frame = someone(seed, t=2.0 * seed)
    assert frame.person is not None
    points = np.concatenate([frame.person.body, frame.person.hands[:, 0], frame.person.face[17:]])[:, :2]
    column, row = np.floor(points).astype(int).T
    inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    assert inside.mean() > 0.9
    assert frame.mask[row[inside], column[inside]].all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_what_the_figure_changes(kind: str) -> None:
    rng = np.random.default_rng(7)
    scene, identity, motion = Scene.sample(kind, rng), Identity.sample(rng), Motion.sample(rng)
    frame = render_frame(scene, identity, motion, 4.0, HEIGHT, WIDTH)
    empty = render_frame(scene, None, None, 4.0, HEIGHT, WIDTH)
    assert frame.person is not None
    assert empty.person is None
    assert not empty.mask.any()
    changed = np.abs(frame.rgb.astype(int) - empty.rgb).max(-1) > 0
    above_shadow = slice(0, int(0.9 * HEIGHT))
    outside = changed[above_shadow] & ~frame.mask[above_shadow]
    assert outside.sum() < 0.08 * frame.mask.sum()  # pixels that the figure covers by less than half
    assert (changed & frame.mask).sum() > 0.97 * frame.mask.sum()


@pytest.mark.parametrize("change", [{"mouth": 1.0}, {"eyes": 0.0}, {"smile": -1.0}, {"gaze": 1.0}, {"brow": -1.0}])
def test_the_expression_changes_the_face_and_nothing_else(change: dict[str, float]) -> None:
    scene, identity = Scene("room", 1), Identity.sample(np.random.default_rng(2))
    plain, changed = (
        render_frame(scene, identity, motion, 0.0, 224, 128) for motion in (standing(), standing(**change))
    )
    assert plain.face_box is not None
    assert changed.face_box is not None
    left, top = np.floor(np.minimum(plain.face_box[:2], changed.face_box[:2]))
    right, bottom = np.ceil(np.maximum(plain.face_box[2:], changed.face_box[2:]))
    rows, columns = np.nonzero(np.abs(plain.rgb.astype(int) - changed.rgb).max(-1))
    assert len(rows) > 20
    assert left <= columns.min()
    assert columns.max() < right
    assert top <= rows.min()
    assert rows.max() < bottom


def test_the_face_points_follow_the_expression() -> None:
    def face(**change: float) -> np.ndarray:
        frame = render_frame(Scene("room", 1), looks, standing(**change), 0.0, 224, 128)
        assert frame.person is not None
        return frame.person.face

    looks = Identity.sample(np.random.default_rng(2))
    shut, wide = face(mouth=0.0), face(mouth=1.0)
    assert wide[66, 1] - wide[62, 1] > shut[66, 1] - shut[62, 1] + 3  # inner lips
    assert wide[8, 1] > shut[8, 1] + 2  # chin
    closed, opened = face(eyes=0.0), face(eyes=1.0)
    assert opened[41, 1] - opened[37, 1] > closed[41, 1] - closed[37, 1] + 4
    assert opened[36, 0] < opened[39, 0] < opened[42, 0] < opened[45, 0]
    assert (np.diff(opened[1:16, 0]) > 0).all()  # the jaw runs from the picture's left to its right


def test_the_drawn_mouth_is_dark_where_the_points_say_it_is_open() -> None:
    looks = Identity.sample(np.random.default_rng(2))
    frame = render_frame(Scene("room", 1), looks, standing(mouth=1.0), 0.0, 448, 256)
    assert frame.person is not None
    x, y = frame.person.face[60:68, :2].mean(0).astype(int)
    assert np.abs(frame.rgb[y, x].astype(int) - looks.skin).sum() > 150


@pytest.mark.parametrize("kind", DRIFTING)
@pytest.mark.parametrize("seed", range(3))
def test_scenes_drift_as_they_say(kind: str, seed: int) -> None:
    scene = Scene.sample(kind, np.random.default_rng(seed))
    left, top, right, bottom = scene.window(224, 128)
    times = [10.0, 12.0, *range(14, 110, 4)]
    frames = np.stack([frame.rgb for frame in render_clip(scene, None, None, times, 224, 128)])[
        :, top:bottom, left:right
    ]
    before, after = frames[:2] - frames.mean(0)  # without what stands still
    stated = np.array(scene.flow(224)) * 2
    assert np.abs(stated).max() > 3
    assert np.abs(np.array(measured_shift(before, after)) - stated).max() <= 1.0


@pytest.mark.parametrize("kind", DRIFTING)
def test_the_flow_of_a_small_picture_is_the_stated_one(kind: str) -> None:
    """What training at 112 x 64 has to learn must be there to be seen, by a measure that knows nothing of the world."""
    measured, stated = [], []
    for seed in range(4):
        scene = Scene.sample(kind, np.random.default_rng(seed))
        left, top, right, bottom = scene.window(HEIGHT, WIDTH)
        grey = [
            frame.rgb.mean(-1).astype(np.uint8) for frame in render_clip(scene, None, None, range(4), HEIGHT, WIDTH)
        ]
        for before, after in itertools.pairwise(grey):
            flow = np.zeros((HEIGHT, WIDTH, 2), np.float32)
            flow = cv2.calcOpticalFlowFarneback(before, after, flow, 0.5, 3, 9, 3, 5, 1.1, 0)
            changed = np.abs(before.astype(int) - after) > 8
            measured.append(np.median(flow[top:bottom, left:right][changed[top:bottom, left:right]], 0))
        stated.append(scene.flow(HEIGHT))
    found, truth = np.mean(measured, 0), np.mean(stated, 0)
    assert 0.9 < np.linalg.norm(truth) < 3
    assert np.linalg.norm(found - truth) < 0.25 * np.linalg.norm(truth)


@pytest.mark.parametrize("kind", DRIFTING)
def test_a_kind_drifts_one_way_at_one_speed(kind: str) -> None:
    velocities = np.array([Scene.sample(kind, np.random.default_rng(seed)).velocity for seed in range(40)])
    middle = velocities.mean(0)
    assert np.linalg.norm(velocities - middle, axis=-1).max() < 0.13 * np.linalg.norm(middle)


def test_the_room_stands_still_and_fireworks_do_not() -> None:
    room, sky = (Scene.sample(kind, np.random.default_rng(0)) for kind in ("room", "fireworks"))
    still = [frame.rgb for frame in render_clip(room, None, None, [0.0, 7.3], 80, 48)]
    alive = [frame.rgb for frame in render_clip(sky, None, None, [20.0, 22.0], 80, 48)]
    assert room.velocity == (0.0, 0.0)
    assert np.array_equal(still[0], still[1])
    assert not np.array_equal(alive[0], alive[1])


def test_a_motion_drives_any_identity() -> None:
    rng = np.random.default_rng(3)
    scene, motion = Scene.sample("room", rng), Motion.sample(rng)
    first, second = (render_frame(scene, Identity.sample(rng), motion, 6.0, HEIGHT, WIDTH) for _ in range(2))
    assert first.person is not None
    assert second.person is not None
    assert first.expression == second.expression
    gap = np.linalg.norm(first.person.body[:, :2] - second.person.body[:, :2], axis=-1)
    assert gap.max() < 0.12 * HEIGHT
    both = first.mask & second.mask
    assert np.abs(first.rgb[both].astype(int) - second.rgb[both]).mean() > 20


@pytest.mark.parametrize("size", [(112, 64), (224, 128)])
def test_a_face_map_hardly_tells_the_quick_drawing_from_the_whole_one(size: tuple[int, int]) -> None:
    for seed in range(12):
        rng = np.random.default_rng(seed)
        scene, identity, motion = Scene.sample("room", rng), Identity.sample(rng), Motion.sample(rng)
        for t in (0.0, 4.0, 9.0):
            frame = render_frame(scene, identity, motion, t, *size)
            rgb, person = render_face(scene, identity, motion, t, *size)
            (patches, whole), (quick_patches, quick) = draw_face(frame.rgb, frame.person), draw_face(rgb, person)
            assert np.array_equal(patches, quick_patches)
            assert (whole != quick).any(-1).sum() < 0.01 * whole.any(-1).sum()  # a strip at the hips


def test_a_scene_may_keep_its_own_time() -> None:
    rng = np.random.default_rng(4)
    scene, identity, motion = Scene.sample("waterfall", rng), Identity.sample(rng), Motion.sample(rng)
    frame = render_frame(scene, identity, motion, 30.0, HEIGHT, WIDTH, scene_t=2.0)
    empty = render_frame(scene, None, None, 2.0, HEIGHT, WIDTH)
    top = slice(0, 8)
    assert np.array_equal(frame.rgb[top][~frame.mask[top]], empty.rgb[top][~frame.mask[top]])


def test_what_cannot_be_drawn_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown scene kind 'desert'"):
        Scene.sample("desert", rng)
    with pytest.raises(ValueError, match="go together"):
        render_frame(Scene("room", 0), Identity.sample(rng), None, 0.0, 80, 48)
    with pytest.raises(ValueError, match="too small"):
        render_frame(Scene("room", 0), None, None, 0.0, 8, 48)

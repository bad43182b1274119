"""Mouth and eyes are read from the pixels of people whom the read-out has not seen."""

import numpy as np
import pytest
from PIL import Image
from xdyna_train.metrics.expression import READ, Heads, ReadOut, expressions, features, fit_read_out
from xdyna_train.metrics.intervals import correlation
from xdyna_train.puppets import Identity, Motion, Scene, render_clip

HEIGHT, WIDTH = 112, 64
TIMES = [float(t) for t in range(20, 28)]


@pytest.fixture(scope="module")
def read_out() -> ReadOut:
    return fit_read_out(HEIGHT, WIDTH, np.random.default_rng(100))


@pytest.fixture(scope="module")
def clips() -> list[tuple[np.ndarray, Heads, np.ndarray]]:
    clips = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scene, identity, motion = Scene.sample("waterfall", rng), Identity.sample(rng), Motion.sample(rng)
        frames = np.stack([frame.rgb for frame in render_clip(scene, identity, motion, TIMES, HEIGHT, WIDTH)])
        heads = Heads.of(identity, motion, TIMES, HEIGHT, WIDTH)
        clips.append((frames.astype(np.float32) / 255, heads, expressions(motion, TIMES)))
    return clips


def read(read_out: ReadOut, clips: list, change=lambda frames: frames) -> list[float]:
    readings = np.stack([read_out(change(frames), heads) for frames, heads, _ in clips])
    true = np.stack([expression for _, _, expression in clips])
    return [correlation(readings[..., k], true[..., k]) for k in range(len(READ))]


def coarse(frames: np.ndarray) -> np.ndarray:
    pictures = [Image.fromarray((frame * 255).astype(np.uint8)) for frame in frames]
    halves = [picture.reduce(2).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR) for picture in pictures]
    return np.stack([np.asarray(half) for half in halves]).astype(np.float32) / 255


def test_the_truth_is_read_well(read_out: ReadOut, clips: list) -> None:
    assert min(read(read_out, clips)) > 0.94


def test_a_coarse_picture_is_still_read(read_out: ReadOut, clips: list) -> None:
    assert min(read(read_out, clips, coarse)) > 0.75


def test_a_face_that_stands_still_is_not_read(read_out: ReadOut, clips: list) -> None:
    assert max(abs(r) for r in read(read_out, clips, lambda frames: frames[:1].repeat(len(frames), 0))) < 0.5


def test_frames_in_another_order_are_not_read(read_out: ReadOut, clips: list) -> None:
    mixed = [(frames, heads, true[::-1]) for frames, heads, true in clips]
    assert max(read(read_out, mixed)) < 0.5


def test_a_grey_picture_has_no_features() -> None:
    rng = np.random.default_rng(0)
    heads = Heads.of(Identity.sample(rng), Motion.sample(rng), [0.0], HEIGHT, WIDTH)
    assert not features(np.full((1, HEIGHT, WIDTH, 3), 0.4, np.float32), heads, "mouth").any()


def test_places_on_the_head_are_those_of_the_face_points() -> None:
    rng = np.random.default_rng(4)
    scene, identity, motion = Scene.sample("room", rng), Identity.sample(rng), Motion.sample(rng)
    frames = render_clip(scene, identity, motion, TIMES, HEIGHT, WIDTH)
    bridge = Heads.of(identity, motion, TIMES, HEIGHT, WIDTH).places(np.array([(0.0, 0.55)]))
    for place, frame in zip(bridge[:, 0], frames, strict=True):
        assert frame.person is not None
        mouth = frame.person.face[48:68, :2]
        assert (place > mouth.min(0) - 2).all()
        assert (place < mouth.max(0) + 2).all()

"""Examples of puppets: same state, same example; the reference and the face frames are what they claim to be."""

import cv2
import numpy as np
import pytest
from xdyna_model.errors import InputError
from xdyna_model.face_map import draw_face
from xdyna_train.clips import Example, ExampleSource
from xdyna_train.puppet_source import PuppetSource
from xdyna_train.puppets import KINDS, Scene

HEIGHT, WIDTH = 112, 64


def drawn(kind: str, seed: int, num_frames: int = 4, scenes: tuple[str, ...] = KINDS, width: int = WIDTH) -> Example:
    source: ExampleSource = PuppetSource(HEIGHT, width, scenes)
    return source.draw("human" if kind == "human" else "scene", num_frames, np.random.default_rng(seed))


def test_an_example_is_a_function_of_the_state_alone() -> None:
    source = PuppetSource(HEIGHT, WIDTH)
    first = source.draw("human", 3, np.random.default_rng(1))
    source.draw("human", 3, np.random.default_rng(2))
    again, other = drawn("human", 1, 3), drawn("human", 2, 3)
    for name in ("reference", "frames", "masks", "face_frames"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))
    assert first.name == again.name != other.name


@pytest.mark.parametrize("num_frames", [1, 5])
def test_shapes_are_those_of_the_protocol(num_frames: int) -> None:
    for kind in ("human", "scene"):
        example = drawn(kind, 0, num_frames)
        assert example.kind == kind
        assert example.reference.shape == (HEIGHT, WIDTH, 3)
        assert example.frames.shape == example.face_frames.shape == (num_frames, HEIGHT, WIDTH, 3)
        assert example.masks.shape == (num_frames, HEIGHT, WIDTH)
        assert {example.frames.dtype, example.reference.dtype, example.face_frames.dtype} == {np.dtype(np.uint8)}
        assert example.masks.dtype == bool
        assert len(example.persons) == len(example.face_persons) == num_frames


def test_scenes_show_nobody() -> None:
    example = drawn("scene", 3)
    assert example.persons == example.face_persons == (None,) * 4
    assert not example.masks.any()
    assert not example.face_frames.any()


def seen_flow(before: np.ndarray, after: np.ndarray, where: np.ndarray) -> np.ndarray:
    """(right, down) in pixels, the median over `where` among the pixels that change."""
    first, second = (picture.mean(-1).astype(np.uint8) for picture in (before, after))
    flow = cv2.calcOpticalFlowFarneback(first, second, np.zeros((*first.shape, 2), np.float32), 0.5, 3, 9, 3, 5, 1.1, 0)
    return np.median(flow[where & (np.abs(first.astype(int) - second) > 8)], 0)


@pytest.mark.parametrize("scene_kind", ["ocean", "grass"])
@pytest.mark.parametrize("kind", ["human", "scene"])
def test_the_frames_go_on_from_the_reference(kind: str, scene_kind: str) -> None:
    flows = []
    for seed in range(4):
        example = drawn(kind, seed, 1, (scene_kind,), width=160)
        where = np.zeros_like(example.masks[0])
        where[HEIGHT // 2 : 4 * HEIGHT // 5] = True  # the water, the meadow
        where[:, 50:110] = False  # the figures
        flows.append(seen_flow(example.reference, example.frames[0], where))
    truth = np.array(Scene.sample(scene_kind, np.random.default_rng(0)).flow(HEIGHT))
    assert np.linalg.norm(np.median(flows, 0) - truth) < 0.3 * np.linalg.norm(truth)


def test_the_reference_shows_another_pose_of_the_same_figure() -> None:
    differences, colours = [], []
    for seed in range(6):
        example = drawn("human", seed, 1, ("room",))
        mask = example.masks[0]
        pair = [picture[mask].astype(int) for picture in (example.reference, example.frames[0])]
        differences.append((np.abs(pair[0] - pair[1]).max(-1) > 8).mean())
        colours.append(np.abs(np.median(pair[0], 0) - np.median(pair[1], 0)).mean())
    assert min(differences) > 0.1
    assert np.median(colours) < 20


def test_the_face_frames_show_another_face_in_the_same_place() -> None:
    for seed in range(4):
        example = drawn("human", seed, 3, ("room",))
        for k in range(3):
            person, other = example.persons[k], example.face_persons[k]
            assert person is not None
            assert other is not None
            assert np.abs(person.face[30, :2] - other.face[30, :2]).max() < 0.5  # the tip of the nose
            assert np.abs(person.face[:, :2] - other.face[:, :2]).max() < 4
            local, whole = draw_face(example.face_frames[k], other)
            seen = local.any(-1)
            assert 40 < seen.sum() < whole.any(-1).sum()
            assert np.abs(local[seen].astype(int) - example.frames[k][seen]).mean() > 2


def test_scene_kinds_are_the_ones_asked_for() -> None:
    names = {drawn("scene", seed, 1, ("rain", "snow")).name.split("-")[0] for seed in range(12)}
    assert names == {"rain", "snow"}


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match="too small"):
        PuppetSource(8, 64)
    with pytest.raises(InputError, match="'desert'"):
        PuppetSource(64, 64, ("room", "desert"))
    with pytest.raises(InputError, match="choose from waterfall"):
        PuppetSource(64, 64, ())
    with pytest.raises(InputError, match="0 frames"):
        PuppetSource(64, 64).draw("human", 0, np.random.default_rng(0))

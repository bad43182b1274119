"""Examples of stored clips: a function of the rng, points that stay on their pixels, no more read than is needed."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdyna_model.detectors import Person
from xdyna_model.errors import InputError
from xdyna_model.images import fit
from xdyna_train.clips import Clip
from xdyna_train.reenactment import LandmarkWarp
from xdyna_train.shard_source import ShardSource, looks, moved, sharpness
from xdyna_train.shards import write_shards

sys.path.insert(0, str(Path(__file__).parent))
from stored_puppets import HEIGHT, WIDTH, assert_same, drawn, puppet_clip, stored


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [puppet_clip("anna", 1), puppet_clip("ben", 2, 7, 2.0), puppet_clip("rain", 3, 9, people=False)]


@pytest.fixture(scope="module")
def folder(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_shards(clips, folder, clips_per_shard=1)
    return folder


def test_an_example_is_a_function_of_the_rng_in_any_process(folder: Path) -> None:
    source = ShardSource(folder, HEIGHT, WIDTH)
    first = drawn(source, "human", 4, 7)
    drawn(source, "scene", 4, 1)
    assert_same(drawn(source, "human", 4, 7), first)
    assert_same(drawn(pickle.loads(pickle.dumps(source)), "human", 4, 7), first)
    assert not np.array_equal(drawn(source, "human", 4, 8).frames, first.frames)


def test_frames_are_steps_of_one_clip_near_the_rate_that_is_wanted(folder: Path, clips: list[Clip]) -> None:
    by_name = {clip.name: np.stack([fit(f, HEIGHT, WIDTH) for f in clip.frames]).astype(int) for clip in clips}
    strides = {"anna": 2, "ben": 1, "rain": 2}  # 16 frames a second to 8; 2 to 8; 16 to 8
    names, moments = set(), set()
    for seed in range(12):
        example = drawn(ShardSource(folder, HEIGHT, WIDTH), "scene" if seed % 3 == 0 else "human", 4, seed)
        originals = by_name[example.name]

        def nearest(picture: np.ndarray, originals: np.ndarray = originals) -> int:
            return int(np.abs(originals - picture).mean((1, 2, 3)).argmin())

        found = [nearest(frame) for frame in example.frames]
        assert np.diff(found).tolist() == [strides[example.name]] * 3
        names.add(example.name)
        moments.add(nearest(example.reference) - found[0])
        assert np.abs(originals[nearest(example.reference)] - example.reference).mean() < 4  # levels, lost to H.264
    assert names == set(by_name)
    assert len(moments) > 4  # the reference is not tied to the frames


def test_a_short_clip_is_read_as_densely_as_it_must_be(folder: Path) -> None:
    source = ShardSource(folder, HEIGHT, WIDTH)
    assert [source.count("human", n) for n in (1, 7, 8, 24, 25)] == [2, 2, 1, 1, 0]
    assert drawn(source, "human", 24, 0).frames.shape == (24, HEIGHT, WIDTH, 3)
    with pytest.raises(InputError, match="has 25 frames"):
        drawn(source, "human", 25, 0)


@given(
    st.integers(16, 60), st.integers(16, 60), st.integers(16, 60), st.integers(16, 60), st.floats(0.25, 0.75), st.data()
)
@settings(max_examples=60, deadline=None)
def test_points_follow_their_pixels(
    h: int, w: int, height: int, width: int, across: float, data: st.DataObject
) -> None:
    """A dot that is cropped and scaled lies where its point has gone; (0.5, 0.5) is the middle of the first pixel."""
    x, y = across * w, data.draw(st.floats(0.3, 0.6), "down") * h
    rows, columns = np.mgrid[:h, :w] + 0.5
    dot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)
    picture = fit(np.repeat(dot[..., None], 3, -1).astype(np.uint8), height, width)[..., 0].astype(float)
    point = np.array([x, y, 0.9], np.float32)
    person = Person(np.tile(point, (14, 1)), np.tile(point, (2, 21, 1)), np.tile(point, (68, 1)))
    found = moved(person, h, w, height, width)
    assert found is not None
    for points in (found.body, found.hands, found.face):
        assert points.dtype == np.float32
        assert np.array_equal(points.reshape(-1, 3), np.tile(points.reshape(-1, 3)[0], (points.size // 3, 1)))
    px, py, confidence = found.body[0]
    assert confidence == np.float32(0.9)
    margin = 5 * max(width / w, height / h)
    if not (margin < px < width - margin and margin < py < height - margin):
        return  # partly cut off
    weight = picture / picture.sum()
    rows, columns = np.mgrid[:height, :width] + 0.5
    assert abs((weight * columns).sum() - px) < 0.35
    assert abs((weight * rows).sum() - py) < 0.35


def test_masks_are_cropped_with_the_pictures(folder: Path, clips: list[Clip]) -> None:
    example = drawn(ShardSource(folder, HEIGHT, WIDTH), "human", 4, 0)
    clip = next(clip for clip in clips if clip.name == example.name)
    wanted = [
        fit(np.repeat(255 * mask[..., None], 3, -1).astype(np.uint8), HEIGHT, WIDTH)[..., 0] for mask in clip.masks
    ]
    for mask in example.masks:
        assert min((mask != (picture > 127)).mean() for picture in wanted) < 0.02
        assert mask.any()


def test_scenes_show_nobody(folder: Path) -> None:
    example = drawn(ShardSource(folder, HEIGHT, WIDTH), "scene", 3, 0)
    assert example.kind == "scene"
    assert example.persons == example.face_persons == (None,) * 3
    assert not example.masks.any()
    assert not example.face_frames.any()


def test_the_warp_shows_another_face_where_the_own_one_is(folder: Path) -> None:
    example = drawn(ShardSource(folder, 112, 64), "human", 3, 0)
    assert example.face_frames.any()
    for picture, frame, person in zip(example.face_frames, example.frames, example.persons, strict=True):
        assert person is not None
        shown = picture.any(-1)
        assert shown.sum() < 0.3 * shown.size
        x, y = person.face[30, :2].astype(int)
        assert shown[y, x]
        assert np.abs(picture[shown].astype(int) - frame[shown]).mean() > 4


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a shard gives, as they are read."""
    found: list[int] = []
    plain = Path.open

    def spied(path: Path, *args: Any, **kwargs: Any) -> Any:
        file: Any = plain(path, *args, **kwargs)
        if path.suffix == ".tar":
            read = file.read
            file.read = lambda size: found.append(size) or read(size)
        return file

    monkeypatch.setattr(Path, "open", spied)
    return found


def test_of_a_clip_no_more_is_read_than_is_needed(folder: Path, sizes: list[int]) -> None:
    source = ShardSource(folder, HEIGHT, WIDTH)
    whole = {name: [span.size for span in stored(source, name).record.files.values()] for name in ("anna", "ben")}
    facts = stored(source, "ben").record.files["json"].size
    stored(source, "ben").face_boxes()
    assert sizes == [facts]
    sizes.clear()
    drawn(source, "human", 10, 0)  # of anna, with ben's face
    assert sizes == [*whole["anna"], facts, *whole["ben"]]
    sizes.clear()
    faces = looks(stored(source, "ben"))
    for _ in range(3):
        next(faces)
    assert sizes == [facts, *whole["ben"]]
    assert list(faces)
    assert sizes == [facts, *whole["ben"] * 2]  # once more for all that were not among the first


def test_no_look_is_read_for_a_face_beyond_the_picture(tmp_path: Path, sizes: list[int]) -> None:
    anna = puppet_clip("anna", 1, 12)
    away = tuple(p and replace(p, face=p.face + np.float32([1000, 1000, 0])) for p in anna.persons)
    write_shards([replace(anna, persons=away), puppet_clip("ben", 2, 9)], tmp_path)
    source = ShardSource(tmp_path, HEIGHT, WIDTH)
    assert not drawn(source, "human", 10, 0).face_frames.any()
    assert sizes == [span.size for span in stored(source, "anna").record.files.values()]


def test_an_example_is_what_whole_clips_give(folder: Path) -> None:
    """Everything of an example again, from clips that are read whole."""
    source = ShardSource(folder, HEIGHT, WIDTH)
    anna, ben = (s.reader.read(s.record, 0, s.record.num_frames) for s in (stored(source, n) for n in ("anna", "ben")))
    boxes = stored(source, "ben").face_boxes()
    areas = [0 if box is None else (box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
    thirds = [max(part, key=lambda i: areas[i]) for part in ([0, 1, 2], [3, 4], [5, 6])]
    best = max(thirds, key=lambda i: sharpness(ben.frames[i], boxes[i] or ()))
    person = ben.persons[best]
    assert person is not None
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rng.integers(1)  # anna: ben is too short
        start, moment = int(rng.integers(24 - 9 * 2)), int(rng.integers(24))
        example = drawn(source, "human", 10, seed)
        frames = np.stack([fit(f, HEIGHT, WIDTH) for f in anna.frames[start : start + 19 : 2]])
        assert np.array_equal(example.frames, frames)
        assert np.array_equal(example.reference, fit(anna.frames[moment], HEIGHT, WIDTH))
        driving = [moved(p, 112, 64, HEIGHT, WIDTH) for p in anna.persons[start : start + 19 : 2]]
        warp = LandmarkWarp()
        faces = [warp(ben.frames[best], person, f, p) for f, p in zip(frames, driving, strict=True) if p is not None]
        assert np.array_equal(example.face_frames, np.stack(faces))
        assert np.stack(faces).any()


def test_a_damaged_clip_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = tmp_path / "shard-00002.tar"
    content = bytearray(shard.read_bytes())
    content[600:700] = bytes(100)
    shard.write_bytes(content)
    with pytest.raises(InputError, match="clip rain is damaged"):
        drawn(ShardSource(tmp_path, HEIGHT, WIDTH), "scene", 2, 0)

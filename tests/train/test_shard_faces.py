"""The face frames of stored clips: somebody else's face where there is one, sharp and usable if any look of it is."""

import pickle
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from xdyna_model.detectors import Person
from xdyna_train.clip_files import pack_clip
from xdyna_train.clips import Clip
from xdyna_train.shard_source import ShardSource, looks, sharpness
from xdyna_train.shards import write_manifest, write_packed, write_shards

sys.path.insert(0, str(Path(__file__).parent))
from stored_puppets import HEIGHT, WIDTH, assert_same, drawn, puppet_clip, stored


class Marker:
    """A reenactor that paints the source's colour over the driving frame."""

    def __call__(
        self, source: np.ndarray, source_person: Person, driving: np.ndarray, driving_person: Person
    ) -> np.ndarray:
        return np.full_like(driving, source[0, 0])


def painted(name: str, colour: int, video: str | None = None) -> tuple[Clip, dict[str, str]]:
    clip = puppet_clip(name, 1, 4)
    return replace(clip, frames=np.full_like(clip.frames, colour)), {} if video is None else {"video": video}


def test_faces_are_another_videos(tmp_path: Path) -> None:
    clips = [painted("a0", 40, "a.mp4"), painted("a1", 80, "a.mp4"), painted("b0", 120, "b.mp4")]
    packed = (pack_clip(clip) for clip, _ in clips)
    notes = (notes for _, notes in clips)
    with_notes = (replace(p, facts=replace(p.facts, notes=n)) for p, n in zip(packed, notes, strict=True))
    write_manifest(tmp_path, list(write_packed(with_notes, tmp_path)))
    source = ShardSource(tmp_path, HEIGHT, WIDTH, Marker())
    for seed in range(12):
        example = drawn(source, "human", 2, seed)
        shown = int(example.face_frames.mean() / 40 + 0.5)
        assert shown == 3 if example.name.startswith("a") else shown in (1, 2)
        assert example.face_persons is example.persons


def test_alone_in_a_set_the_own_face_is_shown(tmp_path: Path) -> None:
    write_shards([puppet_clip("alone", 1, 4)], tmp_path)
    example = drawn(ShardSource(tmp_path, HEIGHT, WIDTH), "human", 2, 0)
    assert np.array_equal(example.face_frames, example.frames)


def test_of_a_clip_the_sharp_face_is_taken(tmp_path: Path) -> None:
    clip = puppet_clip("ben", 2, 6)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in clip.frames])
    blurred[4:] = clip.frames[4:]
    write_shards([replace(clip, frames=blurred), puppet_clip("anna", 1, 4)], tmp_path)
    source = ShardSource(tmp_path, HEIGHT, WIDTH)
    ben = stored(source, "ben")
    found = list(looks(ben))
    assert len(found) == 6  # every frame is a ninth of six
    order = [int(np.argmin([np.abs(p.astype(int) - frame).mean() for frame in clip.frames])) for p, _ in found]
    assert order[0] >= 4
    assert {index // 2 for index in order[:3]} == {0, 1, 2}  # thirds before ninths
    boxes = ben.face_boxes()
    scores = [sharpness(picture, boxes[index] or ()) for index, (picture, _) in zip(order, found, strict=True)]
    assert scores == sorted(scores[:3], reverse=True) + sorted(scores[3:], reverse=True)
    box = boxes[4]
    assert box is not None
    assert sharpness(clip.frames[4], box) > sharpness(cv2.GaussianBlur(clip.frames[4], (0, 0), 2), box)


def test_a_face_beyond_a_corner_is_no_look(tmp_path: Path) -> None:
    """Its box is empty along both axes."""
    clip = puppet_clip("ben", 2, 4)
    away = [person and replace(person, face=person.face + np.float32([1000, 1000, 0])) for person in clip.persons]
    write_shards([replace(clip, persons=tuple(away))], tmp_path)
    (ben,) = ShardSource(tmp_path, HEIGHT, WIDTH)._stored["human"]
    assert not list(looks(ben))


@pytest.mark.parametrize(
    ("aside", "blurred", "shown"),
    [({0}, set(range(1, 9)), True), ({0, 3, 6}, set(), True), (set(range(9)), set(), False)],
    ids=["the sharpest", "the largest of each third", "all"],
)
def test_a_look_that_cannot_be_used_gives_way_to_the_next(
    tmp_path: Path, aside: set[int], blurred: set[int], shown: bool
) -> None:
    ben = puppet_clip("ben", 2, 9)
    frames = [cv2.GaussianBlur(f, (0, 0), 3) if i in blurred else f for i, f in enumerate(ben.frames)]
    persons = [turned(person) if i in aside else person for i, person in enumerate(ben.persons)]
    write_shards([puppet_clip("anna", 1, 12), replace(ben, frames=np.stack(frames), persons=tuple(persons))], tmp_path)
    source = ShardSource(tmp_path, HEIGHT, WIDTH)
    for seed in range(4):
        example = drawn(source, "human", 10, seed)  # of anna: ben is too short
        assert example.face_frames.any() == shown
        assert_same(drawn(pickle.loads(pickle.dumps(source)), "human", 10, seed), example)
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    source.draw("human", 10, rng)
    ShardSource(tmp_path, HEIGHT, WIDTH, Marker()).draw("human", 10, other)  # content with the first look
    assert rng.random() == other.random()  # how many looks are tried changes nothing that is drawn later


def turned(person: Person | None) -> Person:
    """Looks far aside: the points that are not of the jaw are moved. This makes the face larger, too."""
    assert person is not None
    face = person.face.copy()
    face[17:, 0] += 0.6 * np.ptp(face[:, 0])
    return replace(person, face=face)

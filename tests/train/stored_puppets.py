"""Clips of puppets to be stored, and examples drawn of them."""

import numpy as np
from xdyna_train.clips import Clip, Example, ExampleSource, Kind
from xdyna_train.puppets import sample_clip
from xdyna_train.shard_source import ShardSource, StoredClip

HEIGHT, WIDTH = 64, 48


def puppet_clip(name: str, seed: int, num_frames: int = 24, fps: float = 16.0, people: bool = True) -> Clip:
    frames = sample_clip(np.random.default_rng(seed), num_frames, 112, 64, people=people)
    return Clip(
        name,
        "human" if people else "scene",
        fps,
        np.stack([frame.rgb for frame in frames]),
        tuple(frame.person for frame in frames),
        np.stack([frame.mask for frame in frames]),
    )


def drawn(source: ExampleSource, kind: Kind, num_frames: int, seed: int) -> Example:
    return source.draw(kind, num_frames, np.random.default_rng(seed))


def stored(source: ShardSource, name: str) -> StoredClip:
    (found,) = (s for clips in source._stored.values() for s in clips if s.record.name == name)
    return found


def assert_same(first: Example, second: Example) -> None:
    assert first.name == second.name
    for part in ("reference", "frames", "masks", "face_frames"):
        assert np.array_equal(getattr(first, part), getattr(second, part))
    for one, other in zip(first.persons, second.persons, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (other is not None and np.array_equal(one.face, other.face))

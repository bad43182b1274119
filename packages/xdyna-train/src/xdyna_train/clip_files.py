"""A clip as four small files, and back: video, points, masks and a few facts.

`mp4`: H.264 4:4:4 with frequent key frames, so that any stretch of it is reached at once.
`points.npz`: body [F, 14, 3], hands [F, 2, 21, 3], face [F, 68, 3] float32 and seen [F] bool, as in `Person`.
`masks.npz`: one array a frame, named by its index: [H, ceil(W / 8)] uint8, eight pixels to a byte (`numpy.packbits`).
`json`: name, kind, fps, height, width, num_frames, face_boxes (left, top, right, bottom or null), notes.
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from xdyna_model.detectors import Person
from xdyna_model.face_map import face_box, has_face
from xdyna_model.video import encode_video

from xdyna_train.clips import Clip, Kind

EXTENSIONS = ("mp4", "points.npz", "masks.npz", "json")
# With all of the colour, 12 loses 0.8 levels of 255 a pixel of 256x448 puppets; half the colour, 2.0 at the same size.
CRF = 12
KEYFRAME_EVERY = 16
_PARTS = {"body": (14, 3), "hands": (2, 21, 3), "face": (68, 3)}

# One moment of a clip: [H, W, 3] uint8 RGB, who is seen, and [H, W] bool where.
Moment = tuple[np.ndarray, Person | None, np.ndarray]


@dataclass(frozen=True)
class Facts:
    """What is known of a clip without decoding it. Sizes are pixels, fps frames per second.

    notes: whatever else whoever made the clip wants to be read later, as JSON.
    """

    name: str
    kind: Kind
    fps: float
    height: int
    width: int
    num_frames: int
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PackedClip:
    """A clip as the bytes of its files, or of some of them, by the names of `EXTENSIONS`."""

    facts: Facts
    files: Mapping[str, bytes]


def pack_clip(clip: Clip) -> PackedClip:
    """Raises ValueError for a clip without frames."""
    moments = zip(clip.frames, clip.persons, clip.masks, strict=True)
    return pack_moments(clip.name, clip.kind, clip.fps, moments)


def pack_moments(
    name: str, kind: Kind, fps: float, moments: Iterable[Moment], notes: Mapping[str, Any] | None = None
) -> PackedClip:
    """Pack a clip as its moments come, with no more than a few frames in memory.

    Raises ValueError where there is no moment, and whatever `moments` raises.
    """
    persons: list[Person | None] = []
    boxes: list[tuple[int, int, int, int] | None] = []
    sizes: list[tuple[int, int]] = []
    masks = io.BytesIO()
    with zipfile.ZipFile(masks, "w", zipfile.ZIP_DEFLATED) as archive:

        def frames() -> Iterator[np.ndarray]:
            for index, (frame, person, mask) in enumerate(moments):
                height, width, _ = frame.shape
                # A fixed date makes the same clip the same bytes.
                archive.writestr(zipfile.ZipInfo(f"{index}.npy"), _npy(np.packbits(mask, axis=1)), zipfile.ZIP_DEFLATED)
                persons.append(person)
                boxes.append(face_box(person, height, width) if person is not None and has_face(person) else None)
                sizes.append((height, width))
                yield frame

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "clip.mp4")
            encode_video(path, frames(), fps, CRF, KEYFRAME_EVERY, "yuv444p")
            video = path.read_bytes()
    facts = Facts(name, kind, fps, *sizes[0], len(sizes), notes or {})
    text = json.dumps({**asdict(facts), "face_boxes": boxes})
    contents = (video, _pack_persons(persons), masks.getvalue(), text.encode())
    return PackedClip(facts, dict(zip(EXTENSIONS, contents, strict=True)))


def unpack_clip(clip: PackedClip, indices: range) -> Clip:
    """The frames of these indices, ascending; no others are converted, and few others decoded.

    Raises ValueError where the files are not what `pack_clip` makes.
    """
    facts = clip.facts
    try:
        frames = _decode(clip.files["mp4"], facts, indices)
        persons = _unpack_persons(clip.files["points.npz"], indices)
        with np.load(io.BytesIO(clip.files["masks.npz"]), allow_pickle=False) as archive:
            rows = np.stack([archive[str(index)] for index in indices])  # [F, H, W / 8]
    except (av.FFmpegError, zipfile.BadZipFile, KeyError, OSError) as error:
        raise ValueError(str(error)) from error
    masks = np.unpackbits(rows, axis=2, count=facts.width).astype(bool)
    return Clip(facts.name, facts.kind, facts.fps, frames, persons, masks)


def _decode(video: bytes, facts: Facts, indices: range) -> np.ndarray:
    """[F, H, W, 3] uint8 RGB."""
    frames = np.empty((len(indices), facts.height, facts.width, 3), np.uint8)
    filled = 0
    with av.open(io.BytesIO(video), "r") as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        container.seek(round(indices[0] / facts.fps / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if round((frame.time or 0.0) * facts.fps) != indices[filled]:
                continue
            # The encoder has made odd sides even.
            frames[filled] = frame.to_ndarray(format="rgb24")[: facts.height, : facts.width]
            filled += 1
            if filled == len(indices):
                return frames
    raise ValueError(f"holds {filled} of the {len(indices)} frames")


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _pack_persons(persons: Sequence[Person | None]) -> bytes:
    arrays = {part: np.zeros((len(persons), *shape), np.float32) for part, shape in _PARTS.items()}
    for index, person in enumerate(persons):
        for part in _PARTS if person is not None else ():
            arrays[part][index] = getattr(person, part)
    buffer = io.BytesIO()
    seen = np.array([person is not None for person in persons])
    np.savez_compressed(buffer, allow_pickle=False, seen=seen, **arrays)
    return buffer.getvalue()


def _unpack_persons(points: bytes, indices: range) -> tuple[Person | None, ...]:
    with np.load(io.BytesIO(points), allow_pickle=False) as archive:
        seen = archive["seen"]
        arrays = {part: archive[part] for part in _PARTS}
    # Copied, so that a few frames do not keep the whole clip's points alive.
    return tuple(
        Person(**{part: array[i].copy() for part, array in arrays.items()}) if seen[i] else None for i in indices
    )

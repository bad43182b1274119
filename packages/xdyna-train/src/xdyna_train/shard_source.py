"""Examples from clips on disk: shards as `xdyna-train prepare` and `puppets` write them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from xdyna_model.detectors import Person
from xdyna_model.errors import InputError
from xdyna_model.face_map import has_face
from xdyna_model.images import crop_box, fit

from xdyna_train.clips import Clip, Example, Kind
from xdyna_train.reenactment import LandmarkWarp, Reenactor, is_usable
from xdyna_train.shards import ClipRecord, ShardReader, read_packed

FPS = 8.0  # of the frames of an example, as near as a clip's own rate comes: what AnimateDiff's motion modules know
# Another person's clip is cut into so many parts, and the largest face of each is looked at; into the finer ones only
# where none of the first looks can be used.
_PARTS = (3, 9)
_FACE_SIDE = 64  # pixels, at which sharpness is compared
_IDENTITIES = 4  # other people that are tried, where a face cannot be used


@dataclass(frozen=True, eq=False)
class StoredClip:
    """A clip, and where to read it."""

    reader: ShardReader
    record: ClipRecord

    @property
    def identity(self) -> tuple[Path, str]:
        """Whom it shows: clips cut from one video show one person."""
        return self.reader.folder, str(self.record.facts.notes.get("video", self.record.name))

    def stretches(self, *stretches: range) -> list[Clip]:
        """The frames of these indices, ascending; read at once, as the whole clip is read to decode any of it."""
        return self.reader.read_stretches(self.record, stretches)

    def face_boxes(self) -> list[tuple[int, int, int, int] | None]:
        """Left, top, right and bottom in pixels, for every frame; neither pictures nor points are read."""
        return json.loads(read_packed(self.reader.folder, self.record, ["json"]).files["json"])["face_boxes"]


class ShardSource:
    """An `ExampleSource` of stored clips, each drawn as often.

    The frames are a random stretch of a clip, the reference is a random frame of the same clip; both are cropped and
    scaled as the pipeline crops a reference. The face frames show the person of another video, moved by the reenactor;
    the clip's own face only where the set shows nobody else.
    """

    def __init__(
        self,
        folders: Path | Sequence[Path],
        height: int,
        width: int,
        reenactor: Reenactor | None = None,
        fps: float = FPS,
    ) -> None:
        """height, width: of the pictures, in pixels. reenactor: None is `LandmarkWarp`. fps: frames per second wanted.

        Raises InputError where a folder is no data set, or one of its shards is missing.
        """
        readers = [ShardReader(folder) for folder in ([folders] if isinstance(folders, Path) else folders)]
        self._folders = [str(reader.folder) for reader in readers]
        self._size, self._fps, self._reenactor = (height, width), fps, reenactor or LandmarkWarp()
        stored = [StoredClip(reader, record) for reader in readers for record in reader.records]
        self._stored = {kind: [s for s in stored if s.record.kind == kind] for kind in ("human", "scene")}
        numbers: dict[tuple[Path, str], int] = {}
        self._identities = np.array([numbers.setdefault(s.identity, len(numbers)) for s in self._stored["human"]], int)
        self._lengths = {kind: np.array([s.record.num_frames for s in clips]) for kind, clips in self._stored.items()}

    def __str__(self) -> str:
        return ", ".join(self._folders)

    def count(self, kind: Kind, num_frames: int) -> int:
        """How many clips of a kind are long enough for examples of `num_frames` frames."""
        return len(self._long_enough(kind, num_frames))

    def draw(self, kind: Kind, num_frames: int, rng: np.random.Generator) -> Example:
        """Raises InputError where no clip is long enough, or the one that was drawn is damaged or gone."""
        fitting = self._long_enough(kind, num_frames)
        if not len(fitting):
            raise InputError(f"no clip of kind {kind!r} has {num_frames} frames; prepare longer ones")
        index = int(fitting[rng.integers(len(fitting))])
        chosen = self._stored[kind][index]
        length, fps = chosen.record.num_frames, chosen.record.fps
        most = (length - 1) // (num_frames - 1) if num_frames > 1 else 1
        stride = min(max(round(fps / self._fps), 1), most)
        start = int(rng.integers(length - (num_frames - 1) * stride))
        moment = int(rng.integers(length))
        stretch = range(start, start + num_frames * stride, stride)
        clip, reference = chosen.stretches(stretch, range(moment, moment + 1))
        frames = self._fitted(clip.frames)
        if kind == "scene":
            persons: tuple[Person | None, ...] = (None,) * num_frames
            masks, face_frames = np.zeros(frames.shape[:3], bool), np.zeros_like(frames)
        else:
            _, rows, columns = clip.masks.shape
            persons = tuple(moved(person, rows, columns, *self._size) for person in clip.persons)
            masks = np.stack([_fitted_mask(mask, *self._size) for mask in clip.masks])
            face_frames = self._face_frames(index, frames, persons, rng)
        name = chosen.record.name
        return Example(
            name, kind, self._fitted(reference.frames)[0], frames, persons, masks, face_frames, face_persons=persons
        )

    def _long_enough(self, kind: Kind, num_frames: int) -> np.ndarray:
        return np.flatnonzero(self._lengths[kind] >= num_frames)

    def _fitted(self, frames: np.ndarray) -> np.ndarray:
        """[F, H, W, 3] -> [F, height, width, 3] uint8."""
        return np.stack([fit(frame, *self._size) for frame in frames])

    def _face_frames(
        self, chosen: int, frames: np.ndarray, persons: Sequence[Person | None], rng: np.random.Generator
    ) -> np.ndarray:
        """Somebody else's face over each frame, [F, H, W, 3] uint8; black where none of those tried can be used."""
        if not any(map(has_face, persons)):
            return np.zeros_like(frames)
        people = self._stored["human"]
        others = np.flatnonzero(self._identities != self._identities[chosen])
        tried = rng.permutation(others)[:_IDENTITIES]
        if not any(person is not None and is_usable(person, *self._size) for person in persons):
            tried = tried[:0]  # there is nothing to follow: every look would be read in vain
        for index in tried:
            for look in looks(people[int(index)]):
                pairs = zip(frames, persons, strict=True)
                made = [np.zeros_like(f) if p is None else self._reenactor(*look, f, p) for f, p in pairs]
                if any(picture.any() for picture in made):
                    return np.stack(made)
        return np.zeros_like(frames) if len(others) else frames


def looks(clip: StoredClip) -> Iterator[tuple[np.ndarray, Person]]:
    """The largest faces in each third of a clip, the sharpest first, then those in each ninth: the picture,
    [H, W, 3] uint8, and who is in it. No picture comes twice, and the ninths' are read only when they are asked for.

    Nothing comes where no face is seen. Raises InputError where the clip is damaged or gone.
    """
    boxes = clip.face_boxes()
    # A box may be empty along both axes: of a face beyond a corner.
    areas = np.array([0 if box is None else max(0, box[2] - box[0]) * max(0, box[3] - box[1]) for box in boxes])
    shown: set[int] = set()
    for parts in _PARTS:
        split = [part for part in np.array_split(np.arange(len(areas)), parts) if len(part)]
        largest = [int(part[areas[part].argmax()]) for part in split]
        fresh = [index for index in largest if areas[index] > 0 and index not in shown]
        shown.update(fresh)
        if not fresh:
            continue
        found: list[tuple[float, np.ndarray, Person]] = []
        for index, seen in zip(fresh, clip.stretches(*(range(i, i + 1) for i in fresh)), strict=True):
            (picture,), (person,), box = seen.frames, seen.persons, boxes[index]
            if person is not None and box is not None:
                found.append((sharpness(picture, box), picture, person))
        for _, picture, person in sorted(found, key=lambda look: look[0], reverse=True):
            yield picture, person


def sharpness(picture: np.ndarray, box: Sequence[int]) -> float:
    """Variance of the Laplacian of the face in a box (left, top, right, bottom), at a size that all faces have."""
    left, top, right, bottom = box
    face = cv2.cvtColor(picture[top:bottom, left:right], cv2.COLOR_RGB2GRAY)
    face = cv2.resize(face, (_FACE_SIDE, _FACE_SIDE), interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(face, cv2.CV_64F).var())


def moved(person: Person | None, h: int, w: int, height: int, width: int) -> Person | None:
    """Who is seen in a picture of h x w pixels, as `images.fit` shows it at height x width."""
    if person is None:
        return None
    left, top, right, bottom = crop_box(h, w, height, width)
    scale = np.array([width / (right - left), height / (bottom - top), 1], np.float32)
    shift = np.array([left, top, 0], np.float32)
    return Person(*((points - shift) * scale for points in (person.body, person.hands, person.face)))


def _fitted_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """[H, W] bool -> [height, width] bool, as `images.fit` crops: where at least half of a pixel is covered."""
    rows, columns = mask.shape
    left, top, right, bottom = crop_box(rows, columns, height, width)
    kept = mask[top:bottom, left:right].astype(np.float32)
    return cv2.resize(kept, (width, height), interpolation=cv2.INTER_AREA) >= 0.5

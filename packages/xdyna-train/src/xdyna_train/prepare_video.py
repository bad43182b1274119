"""One video -> a part: a small data set of its own, and a file that says it is finished.

PART/shard-00000.tar   the clips, gone once they are merged into the shards of the whole set
PART/manifest.jsonl    what they are
PART/result.json       what was dropped, and what it cost; written last
PART/begun             there while the video is being worked at: a byte for each process that has begun
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from einops import reduce
from xdyna_model.detectors import detection_scale
from xdyna_model.errors import InputError
from xdyna_model.images import fit
from xdyna_model.outputs import staged

from xdyna_train.clip_files import Moment, PackedClip, pack_moments
from xdyna_train.cropping import cut_out
from xdyna_train.person_finder import PersonFinder, is_whole, shows_somebody
from xdyna_train.prepare_options import Dropped, PrepareOptions, VideoRefused
from xdyna_train.quality import QualityModel
from xdyna_train.shards import ClipRecord, write_manifest, write_packed
from xdyna_train.survey import Piece, Survey, judge, read, survey

RESULT = "result.json"
BEGUN = "begun"
# Ray starts a worker that has died again, with the video that it had. Where its decoder crashed, it would so for ever.
MOST_TRIES = 3


@dataclass(frozen=True)
class VideoJob:
    """video: its name in messages and records. path: the file. part: the folder to write."""

    video: str
    path: Path
    part: Path


@dataclass(frozen=True)
class VideoResult:
    """num_frames, seconds: of the video, 0 where it cannot be read. humans, scenes: clips made.
    cpu_seconds, wall_seconds: what it took, all threads together and by the clock.
    """

    video: str
    num_frames: int
    seconds: float
    humans: int
    scenes: int
    cpu_seconds: float
    wall_seconds: float
    dropped: tuple[Dropped, ...]


def prepare_video(job: VideoJob, options: PrepareOptions, finder: PersonFinder, quality: QualityModel) -> VideoResult:
    """Write the part of a video, whatever the video is like. What was there of it is replaced.

    Raises InputError where the part cannot be written or the quality model is none.
    """
    cpu, wall = time.process_time(), time.monotonic()
    found: Survey | None = None
    dropped: list[Dropped] = []
    records: list[ClipRecord] = []
    tries = _begin(job.part)
    try:
        if tries > MOST_TRIES:
            raise VideoRefused("failed", f"{MOST_TRIES} processes died over it, as by a crash of the decoder")
        found = survey(job.video, job.path, options, finder, quality)
        clips = _clips(found, job.path, options, finder, dropped)
        records = list(write_packed(clips, job.part, clips_per_shard=1 << 20))
    except VideoRefused as error:
        dropped = [Dropped(job.video, None, None, error.reason, error.detail)]
    except InputError:
        raise
    except Exception as error:  # one video in a hundred thousand must not end the run; the report tells of it
        dropped = [Dropped(job.video, None, None, "failed", f"{type(error).__name__}: {error}")]
    finally:  # which a process that dies does not reach
        (job.part / BEGUN).unlink(missing_ok=True)
    num_frames = len(found.signatures) if found else 0
    result = VideoResult(
        video=job.video,
        num_frames=num_frames,
        seconds=num_frames / found.fps if found else 0.0,
        humans=sum(record.kind == "human" for record in records),
        scenes=sum(record.kind == "scene" for record in records),
        cpu_seconds=time.process_time() - cpu,
        wall_seconds=time.monotonic() - wall,
        dropped=tuple(dropped),
    )
    _finish(job.part, records, result)
    return result


def read_result(part: Path) -> VideoResult | None:
    """What became of a video, None where its part is not finished."""
    try:
        entry = json.loads((part / RESULT).read_text())
    except FileNotFoundError:
        return None
    return VideoResult(**{**entry, "dropped": tuple(Dropped(**dropped) for dropped in entry["dropped"])})


def is_newer(job: VideoJob) -> bool:
    """Whether the file of a finished video has been written to since, or is not there to be looked at."""
    try:
        return job.path.stat().st_mtime > (job.part / RESULT).stat().st_mtime
    except OSError:  # for a folder that is closed or a name that is too long, Path.exists would raise it too
        return True


def _begin(part: Path) -> int:
    """Empties the part. Returns the number of processes that have begun with it and not ended, this one among them."""
    begun = part / BEGUN
    tries = begun.read_bytes() if begun.exists() else b""
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True, exist_ok=True)
        begun.write_bytes(tries + b".")
    except OSError as error:
        raise InputError(f"{part}: cannot be made a folder ({(error.strerror or str(error)).lower()})") from error
    return len(tries) + 1


def _finish(part: Path, records: list[ClipRecord], result: VideoResult) -> None:
    write_manifest(part, records)
    with staged(part / RESULT) as [draft]:
        draft.write_text(json.dumps(asdict(result)))


def _clips(
    found: Survey, path: Path, options: PrepareOptions, finder: PersonFinder, dropped: list[Dropped]
) -> Iterator[PackedClip]:
    """The clips of a video. What is not to be one is added to `dropped`."""
    frames = read(path)
    reached = 0
    for piece in judge(found, options):
        if isinstance(piece, Dropped):
            dropped.append(piece)
            continue
        stretch = islice(frames, piece.first - reached, piece.last - reached)
        reached = piece.last
        seen: dict[int, bool] = {}
        clip = pack_moments(
            f"{found.video}:{piece.first}-{piece.last}",
            piece.kind,
            found.fps,
            _moments(stretch, piece, options, finder, seen),
            notes=_notes(found.video, piece),
        )
        if objection := _objection(piece, seen, options):
            dropped.append(Dropped(found.video, piece.first, piece.last, "unclear", objection))
        else:
            yield clip


def _objection(piece: Piece, seen: dict[int, bool], options: PrepareOptions) -> str | None:
    """Why a piece is not what it was judged to be, None where it is. seen: by `_moments`."""
    if piece.kind == "scene":
        index = next((index for index, somebody in seen.items() if somebody), None)
        return None if index is None else f"somebody small is seen from close by, as in frame {index}"
    rate = np.mean(list(seen.values()))
    return f"{100 * rate:.0f} % of the frames show a whole person, once cropped" if rate < options.human_rate else None


def _notes(video: str, piece: Piece) -> dict[str, Any]:
    return {
        "video": video,
        "first": piece.first,
        "last": piece.last,
        "window": [piece.window.left, piece.window.top, piece.window.right, piece.window.bottom],
        "quality": round(piece.quality, 4),
    }


def _moments(
    frames: Iterable[np.ndarray], piece: Piece, options: PrepareOptions, finder: PersonFinder, seen: dict[int, bool]
) -> Iterator[Moment]:
    """Crops the frames of a piece, and finds the person in each where it is of a human.

    To `seen` is added, by the index of the frame: of a human, whether all of it was seen; of a scene, whether a closer
    look shows anybody, up to the first that does.
    """
    height, width = options.height, options.width
    nowhere = np.zeros((height, width), bool)
    finder.restart()
    if piece.kind == "scene":
        whole_window = piece.window.height, piece.window.width
        for index, frame in enumerate(frames, piece.first):
            if index in piece.close_looks and not any(seen.values()):
                seen[index] = shows_somebody(finder, cut_out(frame, piece.window, *whole_window))
            yield cut_out(frame, piece.window, height, width), None, nowhere
        return
    scale = detection_scale(height, width)
    for index, frame in enumerate(frames, piece.first):
        large = cut_out(frame, piece.window, height * scale, width * scale)
        person = finder.person(large)
        seen[index] = is_whole(person)
        cropped = large if scale == 1 else fit(large, height, width)
        if person is None:
            yield cropped, None, nowhere
        else:
            yield cropped, person.scaled(1 / scale), _shrunk(finder.mask(large), scale)


def _shrunk(mask: np.ndarray, scale: int) -> np.ndarray:
    """[H * scale, W * scale] bool -> [H, W] bool: where more than half of the pixels are."""
    return reduce(mask.astype(np.float32), "(h y) (w x) -> h w", "mean", y=scale, x=scale) > 0.5

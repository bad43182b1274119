"""What moves the photo: a driving video or ready-made condition videos, read into `Conditions`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xdyna_model.conditions import Conditions
from xdyna_model.detectors import Detector
from xdyna_model.detectors.dwpose import DWPoseDetector, dwpose_files
from xdyna_model.detectors.mediapipe import MediapipeDetector
from xdyna_model.errors import naming
from xdyna_model.images import FrameBuffer, fit
from xdyna_model.job import Job
from xdyna_model.video import frame_rate, iter_frames, read_frames

MAPS = ("pose", "face_local", "face_global")

# Name and number of steps (None where it is not known) -> what to call after each step.
Stage = Callable[[str, int | None], Callable[[], object]]


@dataclass(frozen=True)
class Motion:
    """What moves the photo, at the size of the result.

    conditions: F frames. driving: [F, H, W, 3] uint8 RGB, None where only condition videos are given. fps: frames
    per second. gaps: one line about frames in which nobody was found, None where there are none.
    """

    conditions: Conditions
    driving: np.ndarray | None
    fps: float
    gaps: str | None


def read_motion(job: Job, height: int, width: int, stage: Stage) -> Motion:
    """Read the videos of a job, cropped and scaled to height x width pixels, into conditions.

    A ready-made video replaces what would be read out of the driving video; a map that neither gives is blank.
    The driving video, or else the first of the others, says how many frames there are.
    Raises InputError: a video that cannot be read or has too few frames, a driving video without a person.
    """
    videos, length = job.videos, job.length
    maps: dict[str, np.ndarray] = {}
    driving = gaps = None
    if "driving" in videos:
        if all(name in videos for name in MAPS):
            driving = read_frames(videos["driving"], length, size=(height, width)).frames
        else:
            with _detector(job.dwpose) as detector:
                driving, found, gaps = _detect(videos["driving"], detector, length, height, width, stage)
            maps = {name: getattr(found, name) for name in MAPS}
        length = len(driving)
    for name in MAPS:
        if name in videos:
            maps[name] = read_frames(videos[name], length, size=(height, width)).frames
            length = len(maps[name])
    shape = next(iter(maps.values())).shape
    conditions = Conditions(**{name: maps[name] if name in maps else np.zeros(shape, np.uint8) for name in MAPS})
    return Motion(conditions, driving, frame_rate(next(iter(videos.values()))), gaps)


def _detector(dwpose: Path | None) -> AbstractContextManager[Detector]:
    return MediapipeDetector() if dwpose is None else nullcontext(DWPoseDetector(*dwpose_files(dwpose)))


def _detect(
    path: Path, detector: Detector, length: int | None, height: int, width: int, stage: Stage
) -> tuple[np.ndarray, Conditions, str | None]:
    """Find the person in a video. Returns its frames and conditions, height x width pixels, and a line about gaps.

    Of the video's own frames no more than one is in memory at a time.
    """
    kept = FrameBuffer()

    def frames() -> Iterator[np.ndarray]:
        for frame in iter_frames(path, length):
            kept.append(fit(frame, height, width))
            yield frame

    advance = stage("finding the person", length)
    with naming(path):
        conditions, report = Conditions.from_driving(frames(), detector, lambda _: advance(), size=(height, width))
    gaps = report.summary()
    return kept.take(), conditions, gaps and f"{path.name}: {gaps}."

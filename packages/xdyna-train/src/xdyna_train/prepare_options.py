"""What is asked of the clips, and why something is left out."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from xdyna_model.errors import InputError
from xdyna_model.images import MIN_SIDE
from xdyna_model.job import MULTIPLE

Reason = Literal[
    "unreadable",  # no video, damaged, cut off, or of several sizes
    "failed",  # an error that should not be: a defect here or in a library
    "too short",
    "low quality",
    "unclear",  # somebody is seen, but not all of them, not all the time or only in a closer look
    "too small",
    "does not fit",  # the person walks out of any window of the ratio asked for
]


@dataclass(frozen=True)
class PrepareOptions:
    """height, width: of the clips, in pixels, multiples of 8.
    min_seconds, max_seconds: of a clip; where no whole number of frames lies between them, it has the next more.
    Longer scenes are cut into equal clips, or where these would be too short, into the longest.
    min_quality: of the mean score, in [0, 1].
    human_rate: a clip is of a human where at least this share of the moments looked at shows a whole person.
    scene_rate: a clip is of a scene where at most this share shows anybody, and closer looks nobody. What is in
    between is dropped.
    max_enlargement: of the pixels of the video; what would need more is dropped.
    dwpose: folder of DWPose's two ONNX files, in place of mediapipe. quality_model: ONNX file for `OnnxQuality`, in
    place of the embedded score.

    Raises InputError where these contradict themselves or are no finite numbers.
    """

    height: int = 896
    width: int = 512
    min_seconds: float = 1.0
    max_seconds: float = 30.0
    min_quality: float = 0.2
    human_rate: float = 0.9
    scene_rate: float = 0.02
    max_enlargement: float = 2.0
    dwpose: Path | None = None
    quality_model: Path | None = None

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"--{name.replace('_', '-')} {value}: must be a finite number")
        for name, side in (("height", self.height), ("width", self.width)):
            if side < MIN_SIDE or side % MULTIPLE:
                raise InputError(f"--{name} {side}: must be a multiple of {MULTIPLE} pixels, and at least {MIN_SIDE}")
        if not 0.5 <= self.min_seconds <= self.max_seconds:
            raise InputError(
                f"clips of {self.min_seconds} to {self.max_seconds} seconds: the least must be at least 0.5, "
                "and the most no less"
            )
        for name in ("min_quality", "human_rate", "scene_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must lie between 0 and 1")
        if self.scene_rate >= self.human_rate:
            raise InputError("--scene-rate must be below --human-rate, or clips would be both")
        if not self.max_enlargement > 0:
            raise InputError(f"--max-enlargement {self.max_enlargement}: must be positive")


@dataclass(frozen=True)
class Dropped:
    """What was left out. first, last: frames of the video, the last outside it; None for all of a video."""

    video: str
    first: int | None
    last: int | None
    reason: Reason
    detail: str


class VideoRefused(Exception):
    """No clip can be made of this video."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail

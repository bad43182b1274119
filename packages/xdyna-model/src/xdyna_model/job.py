"""What the command line is asked to do, and everything about it that can be checked before the work starts."""

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from xdyna_model.detectors.dwpose import dwpose_files
from xdyna_model.errors import InputError
from xdyna_model.images import MIN_SIDE, check_file
from xdyna_model.outputs import check_output

_PACKAGE = Path(str(resources.files("xdyna_model")))
EXAMPLE = _PACKAGE / "example"
NANO = _PACKAGE / "nano_model"  # made by `xdyna-train fit`, presets nano-gpu and nano-gpu-finish
EXAMPLE_FRAMES = 16  # one window
MULTIPLE = 8  # pixels to a latent
MAX_SIDE = 16384  # pixels of a picture in H.264, by x264
MAX_STEPS = 250
VIDEOS = ("driving", "pose", "face_local", "face_global")


@dataclass(frozen=True)
class Job:
    """The options of `xdyna animate`, by the same names; None where nothing was asked for. Steps and guidance are
    the model's own then.

    Sizes are pixels, fps frames per second of the result; `loop` lets the windows of a long video wrap from its end
    to its start.
    """

    reference: Path | None = None
    driving: Path | None = None
    pose: Path | None = None
    face_local: Path | None = None
    face_global: Path | None = None
    dwpose: Path | None = None
    model: str | None = None
    frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    seed: int = 42
    device: str = "auto"
    dtype: str = "auto"
    loop: bool = True
    fps: float | None = None
    out: Path = Path("xdyna.mp4")
    preview: bool = True

    @property
    def photo(self) -> Path:
        """The picture to animate: the one asked for, or the built-in example's."""
        return self.reference or EXAMPLE / "reference.png"

    @property
    def videos(self) -> dict[str, Path]:
        """The videos that move the photo, by the names of `VIDEOS`: those asked for, or the built-in example's.

        The first is the one that says how long the result is and how fast it plays.
        """
        asked = {name: getattr(self, name) for name in VIDEOS if getattr(self, name) is not None}
        return asked or {name: EXAMPLE / f"{name}.mp4" for name in VIDEOS}

    @property
    def length(self) -> int | None:
        """Frames to make, None for all that there are."""
        asked = any(getattr(self, name) for name in VIDEOS)
        return EXAMPLE_FRAMES if self.frames is None and not asked else self.frames

    @property
    def outputs(self) -> list[Path]:
        """Every file that will be written, the result last."""
        previews = [self.out.with_suffix(".preview.mp4"), self.out.with_suffix(".preview.png")]
        return [*(previews if self.preview else []), self.out]


def check_job(job: Job) -> None:
    """Raise InputError for what can be seen to be wrong without decoding, loading or computing anything."""
    if (job.face_local is None) != (job.face_global is None):
        raise InputError("--face-local and --face-global go together; give both or neither")
    inputs = [job.photo, *job.videos.values()]
    check_file(job.photo, "picture")
    for path in job.videos.values():
        check_file(path, "video")
    if job.dwpose is not None:
        _check_dwpose(job, job.dwpose)
    if job.out.suffix.lower() != ".mp4":
        raise InputError(f"--out {job.out}: the result is an MP4 file; give a name that ends in .mp4")
    for path in job.outputs:
        check_output(path)
        if path.exists() and any(path.samefile(taken) for taken in inputs):
            raise InputError(f"{path}: is an input and would be overwritten; choose another --out")
    if job.steps is not None and job.steps > MAX_STEPS:
        raise InputError(
            f"--steps {job.steps}: must be at most {MAX_STEPS}; more divide the model's 1000 timesteps so badly that "
            "denoising can start from a reference that is only half noise"
        )
    if job.guidance is not None and not 0 <= job.guidance < math.inf:
        raise InputError(
            f"--guidance {job.guidance}: must be a number of at least 0, such as 7.5; 1 and below turn it off"
        )
    if job.fps is not None and not 1 <= job.fps <= 240:
        raise InputError(f"--fps {job.fps}: must lie between 1 and 240")


def _check_dwpose(job: Job, folder: Path) -> None:
    """Raises InputError where nothing will be detected, and what `dwpose_files` does."""
    if job.driving is None:
        raise InputError(f"--dwpose {folder}: finds people in a driving video; give one, or leave --dwpose out")
    if len(job.videos) == len(VIDEOS):
        raise InputError(
            f"--dwpose {folder}: has nothing to find, as the pose and both faces are ready-made; leave one of the "
            "four out"
        )
    dwpose_files(folder)


def choose_size(job: Job, default_height: int, default_width: int) -> tuple[int, int]:
    """The (height, width) of the result: as asked; the model's own; or one side asked, the other in its ratio.

    Raises InputError unless both are multiples of 8 pixels, at least 64 and at most 16384.
    """
    height, width = job.height, job.width
    for name, side in (("width", width), ("height", height)):
        if side is not None and side > MAX_SIDE:
            raise InputError(f"--{name} {side}: must be at most {MAX_SIDE} pixels")
    if height is None:
        height = default_height if width is None else _multiple(width * default_height / default_width)
    if width is None:
        width = default_width if job.height is None else _multiple(height * default_width / default_height)
    for name, side in (("width", width), ("height", height)):
        if side < MIN_SIDE:
            raise InputError(f"--{name} {side}: must be at least {MIN_SIDE} pixels")
        if side % MULTIPLE:
            below = side // MULTIPLE * MULTIPLE
            near = f"{below} and {below + MULTIPLE}"
            raise InputError(f"--{name} {side}: must be a multiple of {MULTIPLE} pixels; the nearest are {near}")
        if side > MAX_SIDE:
            raise InputError(
                f"the {name} comes to {side} pixels, of at most {MAX_SIDE}; give both --width and --height"
            )
    return height, width


def _multiple(side: float) -> int:
    return max(MIN_SIDE, round(side / MULTIPLE) * MULTIPLE)

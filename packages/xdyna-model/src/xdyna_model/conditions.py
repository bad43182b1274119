"""What the two ControlNets are shown: the pose map and the face map of every frame of a driving video."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from einops import rearrange

from xdyna_model.detectors import Detector, Person, detection_scale
from xdyna_model.errors import InputError
from xdyna_model.face_map import draw_face, has_face
from xdyna_model.images import FrameBuffer, fit
from xdyna_model.pose_map import draw_pose


@dataclass(frozen=True)
class DetectionReport:
    """How the detector fared on a video.

    num_frames: all frames. nobody: the indices of those where nobody was seen, as (first, last) of each run, both
    included. no_face: how many show a person whose face was not seen.
    """

    num_frames: int
    nobody: tuple[tuple[int, int], ...]
    no_face: int

    @property
    def num_nobody(self) -> int:
        """How many frames show nobody."""
        return sum(last - first + 1 for first, last in self.nobody)

    def summary(self) -> str | None:
        """One line for the user, None when a person and a face were seen in every frame."""
        parts = []
        if self.nobody:
            runs = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in self.nobody)
            parts.append(f"nobody was seen in {self.num_nobody} of {self.num_frames} frames ({runs})")
        if self.no_face:
            parts.append(f"no face was seen in {self.no_face} of the {self.num_frames - self.num_nobody} with a person")
        return "; ".join(parts) + ": their maps are blank" if parts else None


@dataclass(frozen=True, eq=False)
class Conditions:
    """pose, face_local, face_global: [F, H, W, 3] RGB each, one picture for every frame that is driven: uint8, or
    float32 in [0, 1].

    Raises InputError unless all three have that form and the same shape.
    """

    pose: np.ndarray
    face_local: np.ndarray
    face_global: np.ndarray

    def __post_init__(self) -> None:
        for name in ("pose", "face_local", "face_global"):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray) or value.dtype not in (np.uint8, np.float32):
                kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
                raise InputError(f"conditions: {name} must be a uint8 or float32 array, not {kind}")
            if value.dtype == np.float32 and not ((value >= 0) & (value <= 1)).all():
                raise InputError(f"conditions: {name} is not in [0, 1] everywhere")
            if value.ndim != 4 or value.shape[3] != 3 or 0 in value.shape:
                raise InputError(f"conditions: {name} must be [frames, height, width, 3], not {list(value.shape)}")
            if value.shape != self.pose.shape:
                raise InputError(
                    f"conditions: {name} is {list(value.shape)} but pose is {list(self.pose.shape)}; they must agree"
                )

    @classmethod
    def blank(cls, num_frames: int, height: int, width: int) -> Self:
        """Conditions that show nobody, as for a clip of a scene. Raises InputError unless all sizes are positive."""
        if min(num_frames, height, width) < 1:
            raise InputError(f"conditions need positive sizes, not {num_frames} frames of {height} x {width}")
        shape = (num_frames, height, width, 3)
        return cls(*(np.zeros(shape, np.uint8) for _ in range(3)))

    @classmethod
    def from_driving(
        cls,
        frames: Iterable[np.ndarray],
        detector: Detector,
        progress: Callable[[int], object] | None = None,
        *,
        size: tuple[int, int] | None = None,
    ) -> tuple[Self, DetectionReport]:
        """Finds the person in every frame and draws the maps.

        frames: [H, W, 3] uint8 RGB each, in order; an iterator is held one frame at a time.
        detector: a fresh one if it tracks. progress: called after each frame with the number of frames done.
        size: (height, width) of the conditions. Each frame is cropped and scaled to it (`images.fit`), but the detector
            sees it larger where it would be too small for faces to be found: give frames of their full size. None:
            frames are of one size, which the conditions have, and are shown to the detector as they are.

        Frames that show nobody get blank maps, and are told in the report. Raises InputError where no frame shows a
        person, there is no frame, the frames differ in size and `size` is None, or it is not positive.
        """
        if size is not None and min(size) < 1:
            raise InputError(f"conditions need positive sizes, not {size[0]} x {size[1]}")
        pose, face_local, face_global = FrameBuffer(), FrameBuffer(), FrameBuffer()
        nobody: list[int] = []
        no_face = 0
        for index, whole in enumerate(frames):
            frame, person = (whole, detector(whole)) if size is None else _seen_larger(whole, detector, *size)
            if person is None:
                nobody.append(index)
            elif not has_face(person):
                no_face += 1
            pose.append(draw_pose(person, *frame.shape[:2]))
            patches, face = draw_face(frame, person)
            face_local.append(patches)
            face_global.append(face)
            if progress is not None:
                progress(index + 1)
        count = len(pose)
        if not count:
            raise InputError("the driving video has no frames")
        if len(nobody) == count:
            raise InputError(
                f"the driving video shows no person in any of its {count} frames: use one that shows a whole person"
            )
        conditions = cls(pose.take(), face_local.take(), face_global.take())
        return conditions, DetectionReport(count, _runs(nobody), no_face)

    @property
    def num_frames(self) -> int:
        return self.pose.shape[0]

    @property
    def height(self) -> int:
        return self.pose.shape[1]

    @property
    def width(self) -> int:
        return self.pose.shape[2]

    def __len__(self) -> int:
        return self.num_frames

    def __getitem__(self, frames: slice | Sequence[int] | Sequence[bool] | np.ndarray) -> "Conditions":
        """The conditions of these frames, in this order: a slice, indices, or a mask of F booleans. A slice shares
        memory, the others copy.

        Raises IndexError for an index out of range, for numbers that are none and for a mask of another length,
        InputError for a choice of no frames.
        """
        chosen = frames if isinstance(frames, slice) else np.atleast_1d(np.asarray(frames))
        if isinstance(chosen, np.ndarray) and chosen.size == 0:
            chosen = chosen.astype(np.intp)  # an empty list is one of floats to NumPy
        return Conditions(self.pose[chosen], self.face_local[chosen], self.face_global[chosen])

    def pose_map(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns [F, 3, H, W] in [0, 1]."""
        return _to_unit(self.pose, device, dtype)

    def face_map(self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns [F, 6, H, W] in [0, 1]: local, then global, the order the released face ControlNet was given."""
        parts = [_to_unit(part, device, dtype) for part in (self.face_local, self.face_global)]
        return torch.cat(parts, dim=1)


def _seen_larger(frame: np.ndarray, detector: Detector, height: int, width: int) -> tuple[np.ndarray, Person | None]:
    """The frame at height x width, and the person in it as a detector finds it in a larger one."""
    scale = detection_scale(height, width)
    large = fit(frame, height * scale, width * scale)
    person = detector(large)
    return fit(large, height, width), person and person.scaled(1 / scale)


def _to_unit(pictures: np.ndarray, device: torch.device | str | None, dtype: torch.dtype) -> torch.Tensor:
    """[F, H, W, 3] uint8 or float32 -> [F, 3, H, W] in [0, 1], divided before it is rounded to `dtype`."""
    pixels = torch.tensor(np.ascontiguousarray(pictures), device=device)  # torch knows no negative strides
    scale = 255 if pixels.dtype == torch.uint8 else 1
    return (rearrange(pixels, "f h w c -> f c h w").float() / scale).to(dtype).contiguous()


def _runs(indices: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ascending indices -> (first, last) of each run of neighbours."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return tuple(runs)

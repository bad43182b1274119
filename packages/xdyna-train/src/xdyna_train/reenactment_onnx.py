"""A user's own reenactment network as a `Reenactor`: Face-Vid2Vid, LivePortrait and their like, exported to ONNX."""

from pathlib import Path

import cv2
import numpy as np
from einops import rearrange
from xdyna_model.detectors import Person
from xdyna_model.errors import InputError
from xdyna_model.onnx_session import open_session

from xdyna_train.reenactment import is_usable

SIDE = 256
# The crop around a face: half its side, and how far its middle is above the face points', in lengths of the longer
# side of the box around them. Head and hair fill it, as in the pictures that such networks are trained on.
_HALF, _ABOVE = 1.15, 0.15
_FORM = f"inputs source and driving and one output, each [1, 3, {SIDE}, {SIDE}] float32, RGB in [0, 1]"


class OnnxReenactor:
    """Runs one ONNX file. Inputs `source` (the identity) and `driving` (what its face shall do), each
    [1, 3, 256, 256] float32 RGB in [0, 1]; the only output is the source's face so moved, in the same form. The first
    size may be left open. Both faces are cropped to a square around the head; the result is put back at the place of
    the driving crop, and all around it is zero. It runs on the CPU.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises InputError where onnxruntime is not installed, the file is missing, or it is no such model."""
        self._path = Path(path)
        # Opened here, called in the forked workers of a DataLoader: CUDA does not survive a fork, and the GPU trains.
        self._session = open_session(self._path, "reenactment", ["CPUExecutionProvider"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if sorted(node.name for node in inputs) != ["driving", "source"] or len(outputs) != 1:
            names = ", ".join(node.name for node in inputs)
            raise InputError(f"{self._path}: has inputs {names} and {len(outputs)} outputs; export it with {_FORM}")
        for node in (*inputs, *outputs):
            if node.type != "tensor(float)" or not _fits(node.shape):
                raise InputError(f"{self._path}: {node.name} is {node.type} {node.shape}; export it with {_FORM}")

    def __call__(
        self, source: np.ndarray, source_person: Person, driving: np.ndarray, driving_person: Person
    ) -> np.ndarray:
        """As `Reenactor`. Raises InputError where the model fails, or makes numbers that are not finite."""
        height, width, _ = driving.shape
        result = np.zeros_like(driving)
        if not (is_usable(source_person, *source.shape[:2]) and is_usable(driving_person, height, width)):
            return result
        left, top, side = _square(driving_person)
        feed = {"source": _crop(source, *_square(source_person)), "driving": _crop(driving, left, top, side)}
        face = _picture(self._run(feed), side)
        rows, columns = slice(max(top, 0), max(top + side, 0)), slice(max(left, 0), max(left + side, 0))
        inside = face[max(-top, 0) : height - top, max(-left, 0) : width - left]
        result[rows, columns] = inside
        return result

    def _run(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        try:
            (made,) = self._session.run(None, feed)
        except Exception as error:  # as above
            raise InputError(f"{self._path}: fails on a face ({str(error).splitlines()[0]})") from error
        if made.shape != (1, 3, SIDE, SIDE) or not np.isfinite(made).all():
            raise InputError(
                f"{self._path}: makes {list(made.shape)}, or numbers that are not finite; expected {_FORM}"
            )
        return made


def _fits(shape: list[int | str | None]) -> bool:
    """Whether a declared shape is [1, 3, 256, 256]; the number of pictures may be open."""
    return len(shape) == 4 and shape[1:] == [3, SIDE, SIDE] and (shape[0] == 1 or not isinstance(shape[0], int))


def _square(person: Person) -> tuple[int, int, int]:
    """The crop around a head: left, top and side, in pixels; it may reach out of the picture."""
    points = person.face[:, :2].astype(np.float64)
    low, high = points.min(0), points.max(0)
    length = float((high - low).max())
    x, y = (low + high) / 2 - (0, _ABOVE * length)
    side = max(2, round(2 * _HALF * length))
    return round(x - side / 2), round(y - side / 2), side


def _crop(picture: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """[1, 3, 256, 256] float32 in [0, 1]; zero beyond the picture."""
    height, width, _ = picture.shape
    crop = np.zeros((side, side, 3), np.uint8)
    part = picture[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    crop[max(-top, 0) : height - top, max(-left, 0) : width - left] = part
    how = cv2.INTER_AREA if side > SIDE else cv2.INTER_LINEAR
    pixels = cv2.resize(crop, (SIDE, SIDE), interpolation=how).astype(np.float32) / 255
    return rearrange(pixels, "h w c -> 1 c h w").copy()


def _picture(made: np.ndarray, side: int) -> np.ndarray:
    """[1, 3, 256, 256] in [0, 1] -> [side, side, 3] uint8."""
    pixels = rearrange(np.clip(made, 0, 1) * 255, "1 c h w -> h w c")
    how = cv2.INTER_AREA if side < SIDE else cv2.INTER_LINEAR
    return np.rint(cv2.resize(np.ascontiguousarray(pixels), (side, side), interpolation=how)).astype(np.uint8)

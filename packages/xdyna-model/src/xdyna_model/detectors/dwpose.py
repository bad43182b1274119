"""The stronger detector, for those who have its files: DWPose (Yang et al. 2023) through ONNX Runtime.

Two published files, which the user brings: `yolox_l.onnx` finds people, `dw-ll_ucoco_384.onnx` finds the 133
points of COCO-WholeBody in a crop around one of them. Sizes are read from the files.
"""

from pathlib import Path

import numpy as np

from xdyna_model.detectors import BODY, Person
from xdyna_model.detectors.simcc import BINS, crop_affine, decode_simcc, warp
from xdyna_model.detectors.yolox import decode_yolox, letterbox, suppress
from xdyna_model.errors import InputError
from xdyna_model.images import check_file
from xdyna_model.onnx_session import open_session

DWPOSE_FILES = ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")  # as published

# What RTMPose was trained with: mean and standard deviation of ImageNet, RGB.
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)
_PERSON_SCORE = 0.3
_OVERLAP = 0.45
_POINTS = 133
_COCO = {
    "nose": 0,
    "left_shoulder": 5,
    "right_shoulder": 6,
    "left_elbow": 7,
    "right_elbow": 8,
    "left_wrist": 9,
    "right_wrist": 10,
    "left_hip": 11,
    "right_hip": 12,
    "left_knee": 13,
    "right_knee": 14,
    "left_ankle": 15,
    "right_ankle": 16,
}
_FACE, _LEFT_HAND, _RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)


def dwpose_files(folder: Path) -> tuple[Path, Path]:
    """The two files in a folder, as `DWPoseDetector` takes them.

    Raises InputError where there is no such folder, or a file is not there, is empty or may not be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the one that holds {' and '.join(DWPOSE_FILES)}")
    boxes, pose = (folder / name for name in DWPOSE_FILES)
    for path in (boxes, pose):
        check_file(path, "DWPose model")
    return boxes, pose


class DWPoseDetector:
    """A `Detector` over DWPose's two ONNX files. It does not track: frames may come in any order.

    The main person is the one whose box is largest. Confidences are the peaks of the model, cut to [0, 1].
    """

    def __init__(self, detector_path: str | Path, pose_path: str | Path, providers: list[str] | None = None) -> None:
        """providers: of ONNX Runtime, in order of preference; None = CUDA where it is installed, else the CPU.

        Raises InputError where onnxruntime is not installed, or a file is missing or is not the model it should be.
        """
        self._detector = _Model(detector_path, "YOLOX detector", outputs=1, providers=providers)
        self._pose = _Model(pose_path, "DWPose pose", outputs=2, providers=providers)

    def __call__(self, frame: np.ndarray) -> Person | None:
        """frame: [H, W, 3] uint8 RGB. Returns None where nobody is seen; raises ValueError for another shape."""
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame is [H, W, 3] uint8, not {list(frame.shape)} {frame.dtype}")
        box = self._main_person(frame)
        return None if box is None else _person(self._whole_body(frame, box))

    def _main_person(self, frame: np.ndarray) -> np.ndarray | None:
        """The box [4] (left, top, right, bottom) of the largest person, in pixels of the frame."""
        picture, scale = letterbox(frame, self._detector.height, self._detector.width)
        # YOLOX was trained on BGR in 0..255.
        blob = picture[None, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32)  # [1, 3, h, w]
        (raw,) = self._detector.run(np.ascontiguousarray(blob))  # [1, A, 5 + classes]
        cells = sum((self._detector.height // s) * (self._detector.width // s) for s in (8, 16, 32))
        if raw.ndim != 3 or raw.shape[1] != cells or raw.shape[2] < 6:
            raise InputError(f"{self._detector.path} is not a YOLOX model: its output has the shape {list(raw.shape)}")
        boxes, scores = decode_yolox(raw[0], self._detector.height, self._detector.width)
        people = scores[:, 0] > _PERSON_SCORE
        boxes, person_scores = boxes[people], scores[people, 0]
        kept = suppress(boxes, person_scores, _OVERLAP)
        if len(kept) == 0:
            return None
        boxes = boxes[kept] / scale
        return boxes[np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))]

    def _whole_body(self, frame: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Returns [133, 3]: x, y in the frame, confidence."""
        affine = crop_affine(box, self._pose.height, self._pose.width)
        crop = warp(frame, affine, self._pose.height, self._pose.width)
        blob = ((crop.astype(np.float32) - _MEAN) / _STD).transpose(2, 0, 1)[None]  # [1, 3, h, w]
        simcc_x, simcc_y = self._pose.run(np.ascontiguousarray(blob))  # [1, 133, 2w], [1, 133, 2h]
        bins = [(1, _POINTS, BINS * self._pose.width), (1, _POINTS, BINS * self._pose.height)]
        if [simcc_x.shape, simcc_y.shape] != bins:
            raise InputError(
                f"{self._pose.path} is not a DWPose model: "
                f"its outputs have the shapes {list(simcc_x.shape)} and {list(simcc_y.shape)}"
            )
        points = decode_simcc(simcc_x[0], simcc_y[0])
        points[:, :2] = points[:, :2] @ affine[:, :2].T + affine[:, 2]
        return points


class _Model:
    """One ONNX file with one picture as input. Its height and width are those of the input."""

    def __init__(self, path: str | Path, what: str, outputs: int, providers: list[str] | None) -> None:
        self.path = Path(path)
        self._session = open_session(self.path, what, providers)
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
            raise InputError(f"{self.path} is not a {what} model: its input has the shape {shape}")
        if shape[1] != 3 or len(self._session.get_outputs()) != outputs:
            raise InputError(f"{self.path} is not a {what} model: {shape[1]} channels in, or not {outputs} outputs")
        self._input = inputs[0].name
        self.height, self.width = int(shape[2]), int(shape[3])

    def run(self, blob: np.ndarray) -> list[np.ndarray]:
        """blob: [1, 3, height, width] float32."""
        return self._session.run(None, {self._input: blob})


def _person(points: np.ndarray) -> Person:
    """points: [133, 3] in the order of COCO-WholeBody."""
    points = points.astype(np.float32)
    body = np.zeros((len(BODY), 3), np.float32)
    for joint, name in enumerate(BODY):
        if name == "neck":
            shoulders = points[[_COCO["left_shoulder"], _COCO["right_shoulder"]]]
            body[joint] = *shoulders[:, :2].mean(0), shoulders[:, 2].min()
        else:
            body[joint] = points[_COCO[name]]
    return Person(body=body, hands=np.stack([points[_LEFT_HAND], points[_RIGHT_HAND]]), face=points[_FACE])

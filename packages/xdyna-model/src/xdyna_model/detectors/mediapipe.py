"""The detector that works without a download: MediaPipe 0.10.21, whose wheel carries its models.

BlazePose tracks the body of one person. Hands and face are small in a picture of a whole person, so their models
see crops that the body places: around each wrist, and around the head.
"""

import warnings
from contextlib import nullcontext
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import numpy as np

from xdyna_model.detectors import BODY, Person
from xdyna_model.detectors.crops import square
from xdyna_model.detectors.face_points import ibug_from_mesh
from xdyna_model.detectors.native_log import native_stderr_aside
from xdyna_model.errors import InputError

# BlazePose's 33 landmarks: what `BODY` needs of them, and what places the crops.
_LANDMARK = {
    "nose": 0,
    "left_ear": 7,
    "right_ear": 8,
    "left_shoulder": 11,
    "right_shoulder": 12,
    "left_elbow": 13,
    "right_elbow": 14,
    "left_wrist": 15,
    "right_wrist": 16,
    "left_hip": 23,
    "right_hip": 24,
    "left_knee": 25,
    "right_knee": 26,
    "left_ankle": 27,
    "right_ankle": 28,
}
# Measures below are in lengths of the torso, from the middle of the shoulders to the middle of the hips.
_HAND_CROP = 1.0
_HEAD_CROP = 0.9
# A hand whose wrist is further than this from the body's wrist is not that hand.
_HAND_REACH = 0.25
# Hands a few dozen pixels high score low. The reach above drops what is not a hand of this person.
_HAND_CONFIDENCE = 0.1


class MediapipeDetector:
    """A `Detector` over MediaPipe's own models, for CPU. It tracks: frames in order, and `reset` between videos.

    body: confidence is BlazePose's visibility. The neck is the middle of the shoulders, as OpenPose has it.
    hands: confidence 1 for a hand that was found; MediaPipe gives none for single points.
    face: FaceMesh draws a face on masks and on the back of heads alike. Its points count where the full-range face
        detector sees a face in the same place, and carry that detector's score.

    Raises InputError where mediapipe is not installed. Close it, or use it in a `with`.
    """

    def __init__(self) -> None:
        solutions = import_solutions()
        with native_stderr_aside():
            self._pose = solutions.pose.Pose(model_complexity=1)
            self._face_mesh = solutions.face_mesh.FaceMesh(max_num_faces=1)
            self._face_detection = solutions.face_detection.FaceDetection(model_selection=1)
            self._hands = [
                solutions.hands.Hands(
                    max_num_hands=1,
                    min_detection_confidence=_HAND_CONFIDENCE,
                    min_tracking_confidence=_HAND_CONFIDENCE,
                )
                for _ in ("left", "right")
            ]
            self._models = [self._pose, self._face_mesh, self._face_detection, *self._hands]
            self._start()

    def __call__(self, frame: np.ndarray) -> Person | None:
        """frame: [H, W, 3] uint8 RGB. Returns None where nobody is seen; raises ValueError for another shape."""
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a frame is [H, W, 3] uint8, not {list(frame.shape)} {frame.dtype}")
        if not self._models:
            raise ValueError("this detector is closed")
        frame = np.ascontiguousarray(frame)
        with nullcontext() if self._greeted else native_stderr_aside():
            landmarks = self._pose.process(frame).pose_landmarks
            if landmarks is None:
                return None
            pose = _points(landmarks, frame.shape, np.zeros(2))  # [33, 2]
            visibility = np.array([point.visibility for point in landmarks.landmark])  # [33]
            person = Person(
                body=_body(pose, visibility), hands=self._find_hands(frame, pose), face=self._find_face(frame, pose)
            )
        self._greeted = True
        return person

    def reset(self) -> None:
        """Forgets the frames so far: the next is the first of another video. Quicker than a new detector."""
        with native_stderr_aside():
            for model in self._models:
                model.reset()
            self._start()

    def close(self) -> None:
        """Frees the models. Closing twice does nothing."""
        while self._models:
            self._models.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        # Threads of theirs are still starting up, and have things to say: wait for a first answer of each.
        for model in self._models:
            model.process(np.zeros((64, 64, 3), np.uint8))
        # And more is said when somebody is first seen.
        self._greeted = False

    def _find_hands(self, frame: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Returns [2, 21, 3] float32."""
        found = np.zeros((2, 21, 3), np.float32)
        torso = _torso(pose)
        misses = [np.inf, np.inf]
        for side, name in enumerate(("left", "right")):
            wrist, elbow = pose[_LANDMARK[f"{name}_wrist"]], pose[_LANDMARK[f"{name}_elbow"]]
            # A hand continues the forearm by about a third of it.
            crop = square(frame, wrist + (wrist - elbow) / 3, _HAND_CROP * torso)
            hands = self._hands[side].process(crop.pixels).multi_hand_landmarks if crop else None
            if crop is None or not hands:
                continue
            points = _points(hands[0], crop.pixels.shape, crop.origin)  # [21, 2]
            miss = float(np.linalg.norm(points[0] - wrist))
            if miss <= _HAND_REACH * torso:
                found[side] = _with_confidence(points, 1.0)
                misses[side] = miss
        # Where the hands meet, both crops may show the same one: it belongs to the nearer wrist.
        both = np.isfinite(misses).all()
        if both and np.linalg.norm(found[0, :, :2] - found[1, :, :2], axis=1).mean() < _HAND_REACH * torso / 4:
            found[int(np.argmax(misses))] = 0
        return found

    def _find_face(self, frame: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """Returns [68, 3] float32."""
        nothing = np.zeros((68, 3), np.float32)
        ears = np.linalg.norm(pose[_LANDMARK["left_ear"]] - pose[_LANDMARK["right_ear"]])
        # The ears speak for a head that is close to the camera, with hips that can only be guessed.
        crop = square(frame, pose[_LANDMARK["nose"]], max(_HEAD_CROP * _torso(pose), 2.5 * float(ears)))
        meshes = self._face_mesh.process(crop.pixels).multi_face_landmarks if crop else None
        if crop is None or not meshes:
            return nothing
        points = ibug_from_mesh(_points(meshes[0], crop.pixels.shape, crop.origin))  # [68, 2]
        score = self._face_score(frame, points.mean(0))
        return _with_confidence(points, score) if score > 0 else nothing

    def _face_score(self, frame: np.ndarray, centre: np.ndarray) -> float:
        """The best score of the detected faces around `centre` (x, y), 0 where there is none."""
        height, width, _ = frame.shape
        best = 0.0
        for face in self._face_detection.process(frame).detections or []:
            box = face.location_data.relative_bounding_box
            x, y = centre[0] / width - box.xmin, centre[1] / height - box.ymin
            if 0 <= x <= box.width and 0 <= y <= box.height:
                best = max(best, float(face.score[0]))
        return min(best, 1.0)


def import_solutions() -> Any:
    try:
        with warnings.catch_warnings():
            # Its dependencies use what newer Pythons deprecate; none of it is this program's to change.
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module("mediapipe.python.solutions")
    except ImportError as error:
        raise InputError(
            f"finding people needs mediapipe ({error}): install it with `pip install 'xdyna-model[detect]'`"
        ) from error


def _points(landmarks: Any, shape: tuple[int, ...], origin: np.ndarray) -> np.ndarray:
    """Landmarks relative to a picture of `shape` -> [N, 2] float64 pixels of the frame it was cut from."""
    height, width = shape[:2]
    return np.array([(point.x * width, point.y * height) for point in landmarks.landmark]) + origin


def _torso(pose: np.ndarray) -> float:
    ends = [(pose[_LANDMARK[f"left_{part}"]] + pose[_LANDMARK[f"right_{part}"]]) / 2 for part in ("shoulder", "hip")]
    return float(np.linalg.norm(ends[0] - ends[1]))


def _body(pose: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """pose [33, 2], visibility [33] -> [14, 3] float32 in the order of `BODY`."""
    body = np.zeros((len(BODY), 3), np.float32)
    for joint, name in enumerate(BODY):
        if name == "neck":
            sides = [_LANDMARK["left_shoulder"], _LANDMARK["right_shoulder"]]
            body[joint] = *pose[sides].mean(0), visibility[sides].min()
        else:
            body[joint] = *pose[_LANDMARK[name]], visibility[_LANDMARK[name]]
    return body


def _with_confidence(points: np.ndarray, confidence: float) -> np.ndarray:
    """[N, 2] -> [N, 3] float32."""
    return np.concatenate([points, np.full((len(points), 1), confidence)], axis=1).astype(np.float32)

"""MediaPipe's detector, and the parts that both detectors share."""

import logging
import os
import sys
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from xdyna_model.detectors import BODY
from xdyna_model.detectors.crops import square
from xdyna_model.detectors.face_points import IBUG_FROM_MESH
from xdyna_model.detectors.mediapipe import MediapipeDetector
from xdyna_model.detectors.native_log import native_stderr_aside
from xdyna_model.detectors.person_mask import PersonMask
from xdyna_model.errors import InputError

ASSETS = Path(__file__).parents[3] / "shared" / "assets"


def driving_frames(name: str, count: int) -> list[np.ndarray]:
    path = ASSETS / "driving" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: the authors' videos are not part of the repository")
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in islice(video.decode(video=0), count)]


@pytest.fixture(scope="module")
def detector():
    pytest.importorskip("mediapipe", reason="needs xdyna-model[detect]")
    with MediapipeDetector() as made:
        yield made


def test_nobody_in_a_blank_frame(detector: MediapipeDetector):
    assert detector(np.zeros((96, 64, 3), np.uint8)) is None
    assert detector(np.full((50, 120, 3), 200, np.uint8)) is None


def test_no_person_mask_in_a_blank_frame():
    pytest.importorskip("mediapipe", reason="needs xdyna-model[detect]")
    with PersonMask() as mask:
        found = mask(np.zeros((96, 64, 3), np.uint8))
    assert found.shape == (96, 64)
    assert found.dtype == bool
    assert not found.any()


@pytest.mark.parametrize("frame", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_only_pictures(detector: MediapipeDetector, frame: np.ndarray):
    with pytest.raises(ValueError, match="a frame is"):
        detector(frame)


def test_without_mediapipe_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions", None)
    with pytest.raises(InputError, match=r"pip install 'xdyna-model\[detect\]'"):
        MediapipeDetector()


def test_a_closed_detector_says_so():
    pytest.importorskip("mediapipe", reason="needs xdyna-model[detect]")
    detector = MediapipeDetector()
    detector.close()
    detector.close()
    with pytest.raises(ValueError, match="closed"):
        detector(np.zeros((9, 9, 3), np.uint8))


def test_a_real_dancer(capfd: pytest.CaptureFixture[str]):
    frames = driving_frames("example_1_driving_1.mp4", 4)
    with MediapipeDetector() as detector:
        people = [detector(frame) for frame in frames]
        detector.reset()
        again = [detector(frame) for frame in frames]
        np.testing.assert_equal([vars(person) for person in again], [vars(person) for person in people])
    assert capfd.readouterr().err == ""
    for person in people:
        assert person is not None
        assert (person.body.shape, person.hands.shape, person.face.shape) == ((14, 3), (2, 21, 3), (68, 3))
        assert person.body.dtype == person.hands.dtype == person.face.dtype == np.float32
        at = dict(zip(BODY, person.body, strict=True))
        # She faces the camera and stands upright.
        assert at["right_shoulder"][0] < at["neck"][0] < at["left_shoulder"][0]
        assert at["nose"][1] < at["neck"][1] < at["left_hip"][1] < at["left_knee"][1] < at["left_ankle"][1]
        face = person.face
        assert (face[:, 2] > 0.5).all()
        right_eye, left_eye, mouth = face[36:42].mean(0), face[42:48].mean(0), face[48:68].mean(0)
        assert right_eye[0] < left_eye[0]
        assert right_eye[1] < face[30, 1] < mouth[1] < face[8, 1]
        assert np.linalg.norm(face[30, :2] - at["nose"][:2]) < 12
        for hand, wrist in zip(person.hands, (at["left_wrist"], at["right_wrist"]), strict=True):
            assert hand[0, 2] == 0 or np.linalg.norm(hand[0, :2] - wrist[:2]) < 50
    hands = np.stack([person.hands for person in people if person is not None])
    assert (hands[:, :, 0, 2] > 0).mean() >= 0.5


def test_the_face_table_names_each_point_once():
    assert IBUG_FROM_MESH.shape == (68,)
    assert len(set(IBUG_FROM_MESH.tolist())) == 68
    assert IBUG_FROM_MESH.max() < 468


@pytest.mark.parametrize("centre", [(20, 15), (0, 0), (38, 29), (-4, 12)])
def test_crops_are_black_beyond_the_frame(centre: tuple[int, int]):
    frame = np.random.default_rng(0).integers(1, 256, (30, 40, 3), dtype=np.uint8)
    crop = square(frame, np.array(centre), 12)
    assert crop is not None
    assert crop.pixels.shape == (12, 12, 3)
    for (y, x), pixel in zip(np.ndindex(12, 12), crop.pixels.reshape(-1, 3), strict=True):
        column, row = x + int(crop.origin[0]), y + int(crop.origin[1])
        inside = 0 <= column < 40 and 0 <= row < 30
        np.testing.assert_array_equal(pixel, frame[row, column] if inside else 0)


def test_no_crop_beside_the_frame():
    frame = np.zeros((30, 40, 3), np.uint8)
    assert square(frame, np.array([100, 10]), 12) is None
    assert square(frame, np.array([10, 10]), 1.5) is None


def test_native_noise_goes_to_the_log(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG), native_stderr_aside():
        os.write(2, b"INFO: noise\n")
    assert "INFO: noise" in caplog.text
    assert "noise" not in capfd.readouterr().err


def test_native_noise_is_shown_when_something_failed(capfd: pytest.CaptureFixture[str]):
    def fail() -> None:
        with native_stderr_aside():
            os.write(2, b"F: cannot open the model\n")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert "cannot open the model" in capfd.readouterr().err

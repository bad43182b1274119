"""DWPose's decoding, on small ONNX models that find what a test planted.

The published weights are not needed: these models have their inputs and outputs. The detector says what is written
into it as long as the frame has red in it; the pose model points every keypoint at the reddest pixel it is shown.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from xdyna_model.detectors import BODY
from xdyna_model.detectors.dwpose import DWPoseDetector
from xdyna_model.detectors.simcc import crop_affine, decode_simcc, warp
from xdyna_model.detectors.yolox import decode_yolox, letterbox, suppress
from xdyna_model.errors import InputError

pytest.importorskip("onnxruntime", reason="needs xdyna-model[detect]")

SIDE, CELLS = 64, 84  # 8 * 8 + 4 * 4 + 2 * 2
RED = (255, 0, 0)


def save(path: Path, nodes: list, constants: dict[str, np.ndarray], shape: list, outputs: dict[str, list]) -> Path:
    graph = helper.make_graph(
        nodes,
        "planted",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def planted_detector(path: Path, boxes: list[tuple[int, tuple[int, int, int, int], int, float]]) -> Path:
    """boxes: (cell of the stride 8 grid, (left, top, right, bottom) in the 64 x 64 input, class, score)."""
    raw = np.zeros((1, CELLS, 85), np.float32)
    for cell, (left, top, right, bottom), kind, score in boxes:
        x, y = cell % 8, cell // 8
        raw[0, cell, :2] = (left + right) / 16 - x, (top + bottom) / 16 - y
        raw[0, cell, 2:4] = np.log([(right - left) / 8, (bottom - top) / 8])
        raw[0, cell, 4], raw[0, cell, 5 + kind] = 1, score
    scale = np.ones(85, np.float32)
    scale[4] = 1 / 255
    offset = np.zeros(85, np.float32)
    offset[4] = 1
    constants = {"raw": raw, "two": np.array(2), "scale": scale, "keep": 1 - offset, "pick": offset}
    nodes = [
        helper.make_node("Gather", ["input", "two"], ["red"], axis=1),  # blue, green, red
        helper.make_node("ReduceMax", ["red"], ["reddest"], axes=[1, 2], keepdims=1),  # [1, 1, 1]
        helper.make_node("Mul", ["reddest", "scale"], ["share"]),
        helper.make_node("Mul", ["share", "pick"], ["gate"]),
        helper.make_node("Add", ["gate", "keep"], ["factor"]),
        helper.make_node("Mul", ["raw", "factor"], ["output"]),
    ]
    return save(path, nodes, constants, [1, 3, SIDE, SIDE], {"output": [1, CELLS, 85]})


def reddest_pixel_pose(path: Path, points: int = 133) -> Path:
    nodes, constants = [], {"red": np.array(0)}
    for axis, reduce, size in (("x", 1, 288), ("y", 2, 384)):
        constants |= {
            f"{axis}_column": np.array([1, size, 1]),
            f"{axis}_twice": np.array([1, size, 2]),
            f"{axis}_row": np.array([1, 1, 2 * size]),
            f"{axis}_all": np.array([1, points, 2 * size]),
        }
        nodes += [
            helper.make_node("Gather", ["input", "red"], [f"{axis}0"], axis=1),
            helper.make_node("ReduceMax", [f"{axis}0"], [f"{axis}1"], axes=[reduce], keepdims=0),
            helper.make_node("Reshape", [f"{axis}1", f"{axis}_column"], [f"{axis}2"]),
            helper.make_node("Expand", [f"{axis}2", f"{axis}_twice"], [f"{axis}3"]),
            helper.make_node("Reshape", [f"{axis}3", f"{axis}_row"], [f"{axis}4"]),
            helper.make_node("Expand", [f"{axis}4", f"{axis}_all"], [f"simcc_{axis}"]),
        ]
    outputs = {"simcc_x": [1, points, 576], "simcc_y": [1, points, 768]}
    return save(path, nodes, constants, [1, 3, 384, 288], outputs)


@pytest.mark.parametrize("at", [(70, 90), (101, 60), (55, 131)])
def test_a_planted_point_is_found_where_it_is(tmp_path: Path, at: tuple[int, int]):
    # The frame is 160 x 200, so the detector's 64 x 64 sees it at 0.32: the box is (25, 31, 150, 188) in the frame.
    detector = DWPoseDetector(
        planted_detector(tmp_path / "yolox_l.onnx", [(20, (8, 10, 48, 60), 0, 0.9)]),
        reddest_pixel_pose(tmp_path / "dw-ll_ucoco_384.onnx"),
    )
    frame = np.zeros((200, 160, 3), np.uint8)
    frame[at[1], at[0]] = RED
    person = detector(frame)
    assert person is not None
    assert (person.body.shape, person.hands.shape, person.face.shape) == ((14, 3), (2, 21, 3), (68, 3))
    for points in (person.body, *person.hands, person.face):
        assert points.dtype == np.float32
        np.testing.assert_allclose(points[:, :2], np.broadcast_to(at, (len(points), 2)), atol=0.75)
        assert (points[:, 2] == 1).all()  # peaks above 1 are cut


def test_nobody_where_the_detector_sees_nobody(tmp_path: Path):
    detector = DWPoseDetector(
        planted_detector(tmp_path / "d.onnx", [(20, (8, 10, 48, 60), 0, 0.9)]), reddest_pixel_pose(tmp_path / "p.onnx")
    )
    red, blue = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    red[..., 0] = blue[..., 2] = 255
    assert detector(red) is not None
    assert detector(blue) is None  # it is shown blue, green, red; in another order it would see red here


def test_the_largest_person_is_taken(tmp_path: Path):
    boxes = [
        (0, (0, 0, 60, 60), 5, 0.99),  # larger, but no person
        (27, (30, 20, 40, 40), 0, 0.95),
        (36, (4, 20, 24, 60), 0, 0.8),
        (18, (0, 0, 64, 64), 0, 0.2),  # a person the detector is not sure of
    ]
    detector = DWPoseDetector(planted_detector(tmp_path / "d.onnx", boxes), reddest_pixel_pose(tmp_path / "p.onnx"))
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[30, 35] = (200, 0, 0)  # on the smaller person
    frame[50, 10] = (150, 0, 0)  # on the larger
    person = detector(frame)
    assert person is not None
    np.testing.assert_allclose(person.body[0, :2], (10, 50), atol=0.75)


def test_keypoints_land_at_their_joints(tmp_path: Path):
    planted_x = np.zeros((1, 133, 576), np.float32)
    planted_y = np.zeros((1, 133, 768), np.float32)
    for k in range(133):
        planted_x[0, k, 2 * k], planted_y[0, k, 2 * k + 1] = 0.9, 0.8
    planted_x[0, 5, 10] = 0.4  # the left shoulder is not so sure
    constants = {"x": planted_x, "y": planted_y, "none": np.zeros(1, np.float32)}
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["some"], keepdims=0),
        helper.make_node("Mul", ["some", "none"], ["zero"]),
        helper.make_node("Add", ["x", "zero"], ["simcc_x"]),
        helper.make_node("Add", ["y", "zero"], ["simcc_y"]),
    ]
    pose = save(
        tmp_path / "p.onnx",
        nodes,
        constants,
        ["batch", 3, 384, 288],
        {"simcc_x": [1, 133, 576], "simcc_y": [1, 133, 768]},
    )
    detector = DWPoseDetector(planted_detector(tmp_path / "d.onnx", [(20, (8, 10, 48, 60), 0, 0.9)]), pose)
    person = detector(np.full((64, 64, 3), 255, np.uint8))
    assert person is not None
    # Box (8, 10, 48, 60): 40 x 50 padded by 1.25 is 50 x 62.5; 288 x 384 holds it at 50 / 288 a pixel.
    scale = 50 / 288

    def at(k: float) -> tuple[float, float]:
        return 28 + (k - 144) * scale, 35 + (k + 0.5 - 192) * scale

    body: dict[str, np.ndarray] = dict(zip(BODY, person.body, strict=True))
    coco = {"nose": 0, "right_shoulder": 6, "left_wrist": 9, "right_hip": 12, "left_ankle": 15, "right_ankle": 16}
    for name, k in coco.items():
        np.testing.assert_allclose(body[name], (*at(k), 0.8), atol=1e-3, err_msg=name)
    np.testing.assert_allclose(body["neck"], (*at(5.5), 0.4), atol=1e-3)
    np.testing.assert_allclose(person.face[8, :2], at(31), atol=1e-3)
    np.testing.assert_allclose(person.hands[0, 0, :2], at(91), atol=1e-3)
    np.testing.assert_allclose(person.hands[1, 20, :2], at(132), atol=1e-3)


@pytest.mark.parametrize("what", ["missing", "text", "swapped", "points"])
def test_wrong_files_are_refused(tmp_path: Path, what: str):
    good = planted_detector(tmp_path / "d.onnx", [(20, (8, 10, 48, 60), 0, 0.9)])
    pose = reddest_pixel_pose(tmp_path / "p.onnx", points=17 if what == "points" else 133)
    (tmp_path / "text.onnx").write_text("not a model")
    detector, pose = {
        "missing": (tmp_path / "nowhere.onnx", pose),
        "text": (tmp_path / "text.onnx", pose),
        "swapped": (pose, good),
        "points": (good, pose),
    }[what]
    with pytest.raises(InputError) as refused:
        DWPoseDetector(detector, pose)(np.full((64, 64, 3), 255, np.uint8))
    assert "\n" not in str(refused.value)
    assert ".onnx" in str(refused.value)


def test_yolox_grid_by_hand():
    raw = np.zeros((CELLS, 7), np.float32)
    raw[64 + 4 * 2 + 3] = (0.5, 0.25, np.log(2), np.log(3), 0.8, 0.5, 0.25)  # stride 16, column 3, row 2
    boxes, scores = decode_yolox(raw, SIDE, SIDE)
    np.testing.assert_allclose(boxes[75], (56 - 16, 36 - 24, 56 + 16, 36 + 24), rtol=1e-5)
    np.testing.assert_allclose(scores[75], (0.4, 0.2), rtol=1e-5)


def test_yolox_grid_of_a_wide_input():
    boxes, _ = decode_yolox(np.zeros((8 * 4 + 4 * 2 + 2, 6), np.float32), 32, 64)
    np.testing.assert_allclose((boxes[8 * 1 + 5, :2] + boxes[8 * 1 + 5, 2:]) / 2, (40, 8))


def test_suppression_keeps_the_best_of_a_heap():
    boxes = np.array([(0, 0, 10, 10), (1, 0, 11, 10), (0, 5, 10, 15), (50, 50, 60, 60)], np.float32)
    kept = suppress(boxes, np.array([0.5, 0.9, 0.8, 0.1]), 0.45)
    assert kept.tolist() == [1, 2, 3]
    assert suppress(np.zeros((0, 4), np.float32), np.zeros(0), 0.45).tolist() == []


def test_letterbox_keeps_the_aspect():
    picture, scale = letterbox(np.full((200, 100, 3), 7, np.uint8), 64, 64)
    assert scale == pytest.approx(0.32)
    assert (picture[:, :32] == 7).all()
    assert (picture[:, 32:] == 114).all()


def test_the_crop_equals_opencvs():
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV, from xdyna-model[detect]")
    y, x = np.mgrid[:120, :90]
    frame = np.stack([2 * x, 2 * y, x + y], axis=2).astype(np.uint8)
    affine = crop_affine(np.array([-10.0, 20.5, 60.25, 110.0]), 96, 72)
    theirs = cv2.warpAffine(frame, affine, (72, 96), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    ours = warp(frame, affine, 96, 72)
    inside = cv2.erode((theirs.sum(axis=2) > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert inside.sum() > 3000
    assert np.abs(ours.astype(int) - theirs)[inside].max() <= 2


def test_simcc_takes_the_lesser_peak():
    simcc_x, simcc_y = np.zeros((2, 20)), np.zeros((2, 30))
    simcc_x[0, 7], simcc_y[0, 12], simcc_x[1, 3] = 0.7, 1.4, 0.9
    np.testing.assert_allclose(decode_simcc(simcc_x, simcc_y), [(3.5, 6, 0.7), (1.5, 0, 0)])

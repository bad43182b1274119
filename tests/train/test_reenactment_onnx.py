"""A user's ONNX model as a reenactor: planted models tell what it is fed and where its answer is put."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from xdyna_model.detectors import Person
from xdyna_model.errors import InputError
from xdyna_train.puppets import Identity, Motion, Scene, render_frame
from xdyna_train.reenactment import Reenactor
from xdyna_train.reenactment_onnx import OnnxReenactor

PICTURE = [1, 3, 256, 256]
Plant = Callable[..., Path]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Writes a model whose output is an operation over its inputs."""

    def write(
        operation: str = "Identity",
        of: tuple[str, ...] = ("source",),
        inputs: tuple[str, ...] = ("source", "driving"),
        shape: list[int | str] = PICTURE,
        dtype: int = TensorProto.FLOAT,
        **attributes: float,
    ) -> Path:
        graph = helper.make_graph(
            [helper.make_node(operation, list(of), ["made"], **attributes)],
            "planted",
            [helper.make_tensor_value_info(name, dtype, shape) for name in inputs],
            [helper.make_tensor_value_info("made", dtype, shape)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = tmp_path / "model.onnx"
        onnx.save(model, str(path))
        return path

    return write


def puppet(seed: int, size: tuple[int, int] = (448, 256)) -> tuple[np.ndarray, Person]:
    identity = Identity.sample(np.random.default_rng(seed))
    frame = render_frame(Scene("room", seed), identity, Motion.standing(), 0.0, *size)
    assert frame.person is not None
    return frame.rgb, frame.person


@pytest.mark.parametrize("shape", [PICTURE, ["batch", 3, 256, 256]])
def test_the_answer_is_put_back_where_the_driving_face_is(plant: Plant, shape: list[int | str]) -> None:
    """A model that returns the driving crop gives the driving picture around the face, and nothing elsewhere."""
    reenact: Reenactor = OnnxReenactor(plant(of=("driving",), shape=shape))
    driving, person = puppet(2)
    result = reenact(*puppet(1), driving, person)
    inside = result.max(-1) > 0
    rows, columns = np.nonzero(inside)
    box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    assert inside[box].all()  # a square
    assert np.abs(result[box].astype(int) - driving[box]).mean() < 3  # scaled up to 256 and back
    face = person.face[:, :2]
    length = np.ptp(face, axis=0).max()
    assert len(set(inside[box].shape)) == 1
    assert inside[box].shape[0] == pytest.approx(2.3 * length, abs=1)
    assert (face.min(0) - 0.3 * length > (columns.min(), rows.min())).all()
    assert (face.max(0) + 0.3 * length < (columns.max(), rows.max())).all()


def test_the_source_is_fed_upright_in_rgb(plant: Plant) -> None:
    """A model that returns the source crop gives the source's face in the driving place, colours and all."""
    reenact = OnnxReenactor(plant(of=("source",)))
    picture, source = puppet(1)
    large, person = puppet(2, (896, 512))
    result = reenact(picture, source, large, person)
    shift = person.face[:, :2].astype(float), source.face[:, :2].astype(float)
    centre, origin = ((points.min(0) + points.max(0)) / 2 for points in shift)
    scale = np.ptp(shift[0], axis=0).max() / np.ptp(shift[1], axis=0).max()
    for point in source.face[[0, 8, 16, 30, 31, 35], :2]:  # jaw and nose
        x, y = np.floor(centre + (point - origin) * scale).astype(int)
        expected = picture[int(point[1]) - 2 : int(point[1]) + 3, int(point[0]) - 2 : int(point[0]) + 3].reshape(-1, 3)
        assert np.abs(expected.astype(int) - result[y, x]).max(-1).min() < 40


def test_values_outside_the_range_are_cut(plant: Plant) -> None:
    driving, person = puppet(2)
    bright = OnnxReenactor(plant("Sum", ("source", "driving")))(*puppet(1), driving, person)
    plain = OnnxReenactor(plant(of=("driving",)))(*puppet(1), driving, person)
    assert (bright.astype(int) >= plain.astype(int) - 1).all()
    assert (bright == 255).any()


def test_a_face_at_the_border_is_cut_off(plant: Plant) -> None:
    driving, person = puppet(2)
    points = person.face[:, :2] - (person.face[30, 0], person.face[30, 1])  # the nose in the corner
    corner = Person(person.body, person.hands, np.concatenate([points, np.ones((68, 1))], 1).astype(np.float32))
    result = OnnxReenactor(plant(of=("driving",)))(*puppet(1), driving, corner)
    rows, columns = np.nonzero(result.any(-1))
    assert rows.min() == columns.min() == 0
    assert max(rows.max(), columns.max()) < 120
    box = slice(0, rows.max() + 1), slice(0, columns.max() + 1)
    assert np.abs(result[box].astype(int) - driving[box]).mean() < 3


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_a_face_that_is_none_gives_a_blank(plant: Plant, confidence: float) -> None:
    reenact = OnnxReenactor(plant())
    driving, person = puppet(2)
    face = np.concatenate([np.full((68, 2), 99.0), np.full((68, 1), confidence)], 1).astype(np.float32)
    broken = Person(person.body, person.hands, face)
    for arguments in ((*puppet(1), driving, broken), (driving, broken, *puppet(1))):
        assert not reenact(*arguments).any()


def test_it_runs_on_the_cpu_beside_a_gpu(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked workers call it, where CUDA fails."""
    session, asked = onnxruntime.InferenceSession, []

    def opened(path: str, providers: list[str]) -> Any:
        asked.append(providers)
        return session(path, providers=["CPUExecutionProvider"])

    installed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: installed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    assert OnnxReenactor(plant())(*puppet(1), *puppet(2)).any()
    assert asked == [["CPUExecutionProvider"]]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"inputs": ("source", "pose")}, "inputs source, pose"),
        ({"inputs": ("source",)}, "inputs source and"),
        ({"inputs": ("source", "driving", "pose")}, "inputs source, driving, pose"),
        ({"shape": [1, 3, 512, 512]}, "512"),
        ({"shape": [1, 256, 256, 3]}, r"\[1, 256, 256, 3\]"),
        ({"shape": [2, 3, 256, 256]}, r"\[2, 3"),
        ({"dtype": TensorProto.FLOAT16}, "float16"),
    ],
)
def test_another_model_is_refused_at_once(plant: Plant, fault: dict, message: str) -> None:
    path = plant(**fault)
    with pytest.raises(InputError, match=message) as caught:
        OnnxReenactor(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; give the ONNX file of a reenactment model"):
        OnnxReenactor(tmp_path / "none.onnx")
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        OnnxReenactor(text)
    assert "\n" not in str(caught.value)


def test_an_answer_that_is_no_picture_is_told(plant: Plant) -> None:
    reenact = OnnxReenactor(plant("Log", ("source",)))  # of a black pixel: minus infinity
    picture, person = puppet(1)
    picture = picture.copy()
    picture[100:140, 100:140] = 0
    with pytest.raises(InputError, match="not finite"):
        reenact(picture, person, *puppet(2))

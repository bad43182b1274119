"""The score falls with everything that spoils a picture."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image, ImageFilter
from xdyna_model.errors import InputError
from xdyna_train.puppets import sample_clip
from xdyna_train.quality import OnnxQuality, measure, picture_quality


def blurred(frame: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(radius)))


def noisy(frame: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 255 * sigma, (*frame.shape[:2], 1))
    return (frame + noise).clip(0, 255).astype(np.uint8)


def compressed(frame: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def burnt(frame: np.ndarray, share: float) -> np.ndarray:
    burnt = frame.copy()
    burnt[: round(share * len(frame))] = 255
    return burnt


@pytest.fixture(scope="module", params=["waterfall", "grass", "room", "stars", "fireworks"])
def picture(request: pytest.FixtureRequest) -> np.ndarray:
    return sample_clip(np.random.default_rng(5), 1, 448, 256, request.param)[0].rgb


@pytest.mark.parametrize(
    ("spoil", "amounts"),
    [
        (blurred, (0.5, 1.0, 2.0, 4.0)),
        (noisy, (0.01, 0.02, 0.04, 0.08)),
        (compressed, (70, 50, 20, 5)),
        (burnt, (0.3, 0.5, 0.7, 0.9)),
    ],
)
def test_worse_pictures_score_less(
    picture: np.ndarray, spoil: Callable[[np.ndarray, float], np.ndarray], amounts: tuple[float, ...]
) -> None:
    scores = [picture_quality(picture), *(picture_quality(spoil(picture, amount)) for amount in amounts)]
    assert scores[0] > 0.8
    assert all(0 <= score <= 1 for score in scores)
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < scores[0] / 2


def test_each_measure_tells_its_own_fault(picture: np.ndarray) -> None:
    clean = measure(picture)
    assert measure(blurred(picture, 3)).sharpness < clean.sharpness / 2
    assert measure(noisy(picture, 0.05)).cleanness < clean.cleanness / 2
    assert measure(noisy(picture, 0.05)).sharpness > 0.8 * clean.sharpness  # noise is not taken for detail
    assert measure(compressed(picture, 10)).wholeness < 0.8 * clean.wholeness
    assert measure(np.full_like(picture, 255)).exposure == 0


def test_turning_the_picture_changes_nothing(picture: np.ndarray) -> None:
    assert picture_quality(np.rot90(picture).copy()) == pytest.approx(picture_quality(picture), rel=0.02)


def test_too_little_to_measure() -> None:
    with pytest.raises(ValueError, match="at least 32 pixels"):
        measure(np.zeros((31, 64, 3), np.uint8))


# Models


def mean_model(path: Path, scale: float = 1.0, side: int | str = 32, answers: int = 1) -> Path:
    """Answers with the mean of what it is given, times `scale`, plus 50."""
    picture = onnx.helper.make_tensor_value_info("picture", onnx.TensorProto.FLOAT, [1, 3, side, side])
    score = onnx.helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, [answers])
    weights = {"factor": np.full(answers, scale, np.float32), "middle": np.full(answers, 50, np.float32)}
    nodes = [
        onnx.helper.make_node("ReduceMean", ["picture"], ["mean"], keepdims=0),
        onnx.helper.make_node("Mul", ["mean", "factor"], ["scaled"]),
        onnx.helper.make_node("Add", ["scaled", "middle"], ["score"]),
    ]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "mean", [picture], [score], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("side", [32, "any"])
def test_a_model_scores_the_normalised_picture(tmp_path: Path, side: int | str) -> None:
    model = OnnxQuality(mean_model(tmp_path / "q.onnx", scale=10, side=side))
    frame = np.empty((48, 40, 3), np.uint8)
    frame[:] = (10, 120, 240)
    wanted = np.mean((np.array([10, 120, 240]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    assert model(frame) == pytest.approx((50 + 10 * wanted) / 100, abs=1e-5)


def test_scores_stay_in_their_range(tmp_path: Path) -> None:
    model = OnnxQuality(mean_model(tmp_path / "q.onnx", scale=1e6))
    assert model(np.zeros((40, 40, 3), np.uint8)) == 0
    assert model(np.full((40, 40, 3), 255, np.uint8)) == 1


def test_what_is_no_quality_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        OnnxQuality(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="cannot be loaded as a quality model"):
        OnnxQuality(tmp_path / "text.onnx")
    two = OnnxQuality(mean_model(tmp_path / "two.onnx", answers=2))
    with pytest.raises(InputError, match="answers \\[2\\] numbers"):
        two(np.zeros((40, 40, 3), np.uint8))

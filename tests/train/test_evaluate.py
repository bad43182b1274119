"""An evaluation passes the truth and nothing else: every fault that a model could have is planted here."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from xdyna_model.conditions import Conditions
from xdyna_model.errors import InputError
from xdyna_model.video import read_frames
from xdyna_train import evaluate as evaluation_module
from xdyna_train.cli import app, main
from xdyna_train.evaluate import Evaluation, evaluate
from xdyna_train.evaluation_benchmark import Benchmark
from xdyna_train.evaluation_cases import MEASURED, Case, draw_case, scene_kind
from xdyna_train.evaluation_figures import ENERGY, FLICKER, unit
from xdyna_train.evaluation_report import table, write
from xdyna_train.metrics.motion import apart

IDENTITIES = 5  # one of each measured scene and one other
HEIGHT, WIDTH = 112, 64


class Stand:
    """Called as a pipeline is. make: what it gives for a case; swapped: whether for swapped face maps."""

    def __init__(self, benchmark: Benchmark, make: Callable[[Case, bool], np.ndarray]) -> None:
        self.off: str | None = None
        self._make, self._cases = make, {}
        for case in benchmark.cases:
            for swapped, conditions in enumerate((case.conditions, case.swapped)):
                self._cases[_key(conditions)] = case, bool(swapped)

    def __call__(self, reference: np.ndarray, conditions: Conditions, **settings) -> SimpleNamespace:
        assert settings["output_type"] == "np"
        case, swapped = self._cases[_key(conditions)]
        assert settings["generator"].initial_seed() == case.seed
        assert np.array_equal(reference, case.reference)
        return SimpleNamespace(frames=unit(self._fault(case) if self.off else self._make(case, swapped))[None])

    def _fault(self, case: Case) -> np.ndarray:
        made = {"adapter off": stranger, "control off": still, "motion modules off": mixed}
        return made[str(self.off)](case, None)


def _key(conditions: Conditions) -> bytes:
    return conditions.pose.tobytes() + conditions.face_global.tobytes()


def true(case: Case, swapped: bool) -> np.ndarray:
    """What a perfect model makes; with other face maps, the face that they show."""
    return case.swapped_truth if swapped else case.truth


def still(case: Case, _: object) -> np.ndarray:
    return case.reference[None].repeat(len(case.truth), 0)


def stranger(case: Case, _: object) -> np.ndarray:
    return case.stranger


def mixed(case: Case, _: object) -> np.ndarray:
    return case.truth[np.random.default_rng(0).permutation(len(case.truth))]


def flickering(case: Case, _: object) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 8, case.truth.shape)
    return (case.truth + noise).clip(0, 255).astype(np.uint8)


def flickering_figure(case: Case, _: object) -> np.ndarray:
    """The scene is right to the bit; the figure and what is within two pixels of it are not."""
    return np.where(apart(case.truth, case.background[1:])[..., None], case.truth, flickering(case, None))


def flickering_copy(case: Case, _: object) -> np.ndarray:
    """Paler, so that no noise is cut off at black or white."""
    noise = np.random.default_rng(case.seed).normal(0, 8, case.truth.shape)
    return (64 + still(case, None) / 2 + noise).astype(np.uint8)


def heedless(case: Case, _: object) -> np.ndarray:
    """Shows the driving face whatever the face maps are."""
    return case.truth


@pytest.fixture(scope="module")
def benchmark_() -> Benchmark:
    return Benchmark.draw(IDENTITIES, 0, HEIGHT, WIDTH)


def failures(evaluation: Evaluation) -> set[str]:
    return {row.name for row in evaluation.rows if row.passed is False}


@contextmanager
def _fault(stand: Stand, name: str) -> Iterator[None]:
    stand.off = name
    yield
    stand.off = None


@pytest.fixture
def controlled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls turn parts of a stand-in off, which has no weights."""
    switches = {name: lambda stand, name=name: _fault(stand, name) for name in evaluation_module.CONTROLS}
    monkeypatch.setattr(evaluation_module, "CONTROLS", switches)


@pytest.fixture(scope="module")
def of_truth(benchmark_: Benchmark) -> Iterator[Evaluation]:
    with pytest.MonkeyPatch.context() as patch:
        switches = {name: lambda stand, name=name: _fault(stand, name) for name in evaluation_module.CONTROLS}
        patch.setattr(evaluation_module, "CONTROLS", switches)
        yield evaluate(Stand(benchmark_, true), benchmark_)


def test_the_truth_meets_every_bar(of_truth: Evaluation) -> None:
    assert failures(of_truth) == set()
    assert of_truth.caught == dict.fromkeys(evaluation_module.CONTROLS, True)
    assert of_truth.passed
    assert len(of_truth.rows) > 25
    for row in of_truth.rows:
        assert row.value == pytest.approx(row.truth)
    told = [row for row in of_truth.rows if np.isfinite(row.low)]
    assert len(told) > 15
    assert all(row.low - 1e-9 <= row.value <= row.high + 1e-9 for row in told)


def test_a_figure_of_one_case_has_no_interval(of_truth: Evaluation, tmp_path: Path) -> None:
    """Nobody knows how far it would move with other people; nothing is what the same case over and over shows."""
    alone = {row.name for row in of_truth.rows if np.isnan(row.low) and np.isnan(row.high)}
    of_one = {row.name for row in of_truth.rows if " flow " in row.name} | {FLICKER.name, ENERGY.name}
    assert alone == of_one  # one case of each measured scene
    lines = [line for line in table(of_truth) if "too few cases" in line]
    assert len(lines) == len(alone)
    assert all(line.endswith("pass") for line in lines)
    write(of_truth, None, tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]
    assert {figure["name"] for figure in figures if figure["low"] is figure["high"] is None} == alone


@pytest.mark.parametrize(
    ("make", "failing", "passing"),
    [
        (
            still,
            ("silhouette IoU above", "joints", "pose retrieval", "mouth r /", "rain flow along", "motion energy"),
            (),
        ),
        (stranger, ("skin colour", "hair colour", "shirt colour", "trousers colour"), ("mouth r /", "pose retrieval")),
        (mixed, ("waterfall flow along", "rain flow along", "clouds flow along", "mouth r /", "eyes r /"), ()),
        (flickering, ("flicker",), ("pose retrieval", "skin colour", "mouth r /")),
    ],
    ids=("copy", "stranger", "mixed", "flickering"),
)
def test_a_planted_fault_misses_its_bar(
    make: Callable, failing: tuple[str, ...], passing: tuple[str, ...], benchmark_: Benchmark
) -> None:
    evaluation = evaluate(Stand(benchmark_, make), benchmark_, controls=False)
    failed = failures(evaluation)
    assert not evaluation.passed
    for start in failing:
        assert any(name.startswith(start) for name in failed), start
    for start in passing:
        assert not any(name.startswith(start) for name in failed), start
    assert not evaluation.controls


@pytest.mark.parametrize(("make", "share"), [(flickering_figure, 1), (flickering_copy, 0)])
def test_what_a_scene_moves_is_told_from_what_flickers(make: Callable, share: float, benchmark_: Benchmark) -> None:
    comparison = benchmark_.compare(benchmark_.measure([unit(make(case, False)) for case in benchmark_.cases]))
    assert np.nanmean(comparison.model.flicker) > 0.005
    assert ENERGY.of(comparison) == pytest.approx(share, abs=0.03)


@pytest.mark.usefixtures("controlled")
def test_a_model_that_does_not_read_the_face_maps_is_found_out(benchmark_: Benchmark) -> None:
    failed = failures(evaluate(Stand(benchmark_, heedless), benchmark_))
    assert failed == {f"{name} r with the driving face, face maps swapped" for name in ("mouth", "eyes")}


def test_a_control_that_changes_nothing_is_named(benchmark_: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    harmless = {name: lambda stand: _fault(stand, "") for name in evaluation_module.CONTROLS}
    monkeypatch.setattr(evaluation_module, "CONTROLS", harmless)
    evaluation = evaluate(Stand(benchmark_, true), benchmark_)
    assert evaluation.caught == dict.fromkeys(evaluation_module.CONTROLS, False)
    assert not evaluation.passed
    assert sum("NO FIGURE OF ITS OWN" in line for line in table(evaluation)) == 3


def test_a_model_that_gives_something_else_is_refused(benchmark_: Benchmark) -> None:
    with pytest.raises(InputError, match="finite"):
        evaluate(Stand(benchmark_, lambda case, _: case.truth[1:]), benchmark_)


def test_too_few_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="2 of each"):
        Benchmark.draw(1, 0, HEIGHT, WIDTH)


def test_the_kinds_with_figures_of_their_own_come_first() -> None:
    kinds = [scene_kind(index) for index in range(30)]
    assert all(kinds.count(kind) == 6 for kind in MEASURED)
    assert len(set(kinds)) == 9


def test_the_help_says_how_many_people_are_needed() -> None:
    (option,) = (o for o in get_command(app).commands["evaluate"].params if o.name == "identities")
    assert option.type.min == len(MEASURED) == 4
    assert "at least one for each of the four kinds of scenes that have a figure" in option.help


def test_a_case_is_held_back_and_depends_on_seed_and_number_alone(benchmark_: Benchmark) -> None:
    again, other = (draw_case(3, seed, HEIGHT, WIDTH) for seed in (0, 1))
    case = benchmark_.cases[3]
    assert again.seed == case.seed != other.seed
    assert np.array_equal(again.truth, case.truth)
    assert not np.array_equal(other.truth, case.truth)


def test_conditions_come_from_someone_else_in_the_same_pose(benchmark_: Benchmark) -> None:
    for case in benchmark_.cases:
        seen = case.conditions.face_global.any(-1)
        assert seen.any((1, 2)).all()
        face = case.parts["skin"] & seen
        assert np.abs(case.conditions.face_global[face].astype(int) - case.truth[face]).mean() > 3
        assert np.array_equal(case.swapped.pose, case.conditions.pose)
        assert not np.array_equal(case.swapped.face_local, case.conditions.face_local)


def test_all_is_written(of_truth: Evaluation, tmp_path: Path) -> None:
    write(of_truth, None, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["passed"] is True
    assert len(record["cases"]) == IDENTITIES
    assert [figure["name"] for figure in record["figures"]] == [row.name for row in of_truth.rows]
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        picture = np.asarray(sheet)
    first = of_truth.benchmark.cases[0].reference.repeat(4, 0).repeat(4, 1)
    assert np.array_equal(picture[22 + 30 : 22 + 448, 6 : 6 + 256], first[30:])
    assert len(read_frames(tmp_path / "out" / "evaluation.mp4").frames) == 16


def test_the_command_refuses_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--model", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("option", "number"), [("--steps", "251"), ("--guidance", "nan"), ("--guidance", "-1")])
def test_the_command_refuses_numbers_out_of_range(option: str, number: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["evaluate", option, number])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"xdyna-train: error: {option} {number}: give a number")


def test_the_command_refuses_a_place_below_a_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--out", str(tmp_path / "file" / "out")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

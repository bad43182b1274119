"""Finding the figure: the truth is found where it is, and what is planted elsewhere is not excused."""

import numpy as np
import pytest
from xdyna_model.detectors import Person
from xdyna_train.evaluation_cases import Case, draw_case
from xdyna_train.evaluation_figures import unit
from xdyna_train.metrics.joints import joints_on_figure
from xdyna_train.metrics.retrieval import retrieved
from xdyna_train.metrics.silhouette import find_figure, intersection_over_union

FRAMES = 4


@pytest.fixture(scope="module", params=range(5), ids=("waterfall", "rain", "clouds", "room", "fireworks"))
def case(request: pytest.FixtureRequest) -> Case:
    return draw_case(request.param, 3, 112, 64, FRAMES)


def found(case: Case, frames: np.ndarray) -> np.ndarray:
    return find_figure(frames, case.colours, unit(case.background))


def test_the_true_figure_is_found(case: Case) -> None:
    figure = found(case, unit(case.truth))
    assert intersection_over_union(figure, case.masks) > 0.88
    assert joints_on_figure(figure, case.persons) > 0.85


def test_the_scene_is_no_figure_at_any_of_its_times(case: Case) -> None:
    scene = unit(case.background)
    assert found(case, scene[:FRAMES][::-1].copy()).mean() < 0.005


def test_a_figure_in_another_place_counts_as_wrong(case: Case) -> None:
    aside = unit(np.where(np.roll(case.masks, 20, 2)[..., None], np.roll(case.truth, 20, 2), case.background[1:]))
    figure = found(case, aside)
    assert intersection_over_union(figure, np.roll(case.masks, 20, 2)) > 0.8
    assert intersection_over_union(figure, case.masks) < 0.4


def test_the_finder_agrees_with_a_search_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    frames, scene, colours = rng.random((2, 19, 5, 3)), rng.random((3, 19, 5, 3)), rng.random((4, 3))
    edge = np.pad(scene, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    near = np.zeros((2, 21, 7))
    for f, y, x in np.ndindex(2, 19, 5):
        figure = ((frames[f, y, x] - colours) ** 2).sum(-1).min()
        near[f, y + 1, x + 1] = figure < ((frames[f, y, x] - edge[:, y : y + 3, x : x + 3]) ** 2).sum(-1).min()
    votes = sum(near[:, dy : dy + 19, dx : dx + 5] for dy in range(3) for dx in range(3))
    arguments = (part.astype(np.float32) for part in (frames, colours, scene))
    assert np.array_equal(find_figure(*arguments), votes >= 5)


def test_intersection_over_union_counts_pixels() -> None:
    first, second = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    first[0, :2], second[0, 1:3] = True, True
    assert intersection_over_union(first, second) == pytest.approx((4 / 12 + 1) / 2)


def test_joints_outside_the_frame_are_not_asked_for() -> None:
    body = np.zeros((14, 3), np.float32)
    body[:, 0] = np.linspace(0.5, 13.5, 14)
    body[:4, 1] = -3
    person = Person(body, np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32))
    figure = np.zeros((1, 8, 14), bool)
    figure[0, 0, 9:] = True
    assert joints_on_figure(figure, [person]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no joint"):
        joints_on_figure(figure[:, :, :4], [person])


def test_retrieval_needs_the_best_fit_to_be_its_own() -> None:
    masks = np.random.default_rng(0).random((6, 3, 10, 8)) < 0.4
    assert retrieved(masks[2], masks, own=2) == 1
    assert retrieved(masks[2], masks, own=3) == 0
    assert retrieved(np.concatenate([masks[2, :2], masks[3, 2:]]), masks, own=2) == pytest.approx(2 / 3)
    assert retrieved(np.zeros((3, 10, 8), bool), masks, own=0) == 0

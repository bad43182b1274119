"""Colours are compared where their part is, and a wrong one is told in full."""

from dataclasses import replace

import numpy as np
import pytest
from xdyna_train.metrics.colour import PARTS, colour_error, draw_parts
from xdyna_train.puppets import Identity, Motion, Scene, render_clip

TIMES, SIZE = [3.0, 4.0], (112, 64)


@pytest.fixture(scope="module")
def world() -> tuple[Scene, Identity, Motion]:
    rng = np.random.default_rng(2)
    identity = replace(Identity.sample(rng), hair_style="bob", pattern="plain", bottom="trousers", shirt=(200, 40, 90))
    return Scene.sample("clouds", rng), identity, Motion.sample(rng)


def drawn(scene: Scene, identity: Identity, motion: Motion) -> np.ndarray:
    frames = [frame.rgb for frame in render_clip(scene, identity, motion, TIMES, *SIZE)]
    return np.stack(frames).astype(np.float32) / 255


def test_parts_lie_apart_on_the_figure(world: tuple[Scene, Identity, Motion]) -> None:
    parts = draw_parts(*world, TIMES, *SIZE)
    masks = np.stack([frame.mask for frame in render_clip(*world, TIMES, *SIZE)])
    together = np.stack([parts[part] for part in PARTS])
    assert together.sum(0).max() == 1
    assert (together.sum((2, 3)) > 60).all()
    assert not (together.any(0) & ~masks).any()
    assert together.any(0).sum() > 0.6 * masks.sum()


def test_a_part_shows_its_own_colour(world: tuple[Scene, Identity, Motion]) -> None:
    region = draw_parts(*world, TIMES, *SIZE)["shirt"]
    mean = drawn(*world)[region].mean(0) * 255
    assert np.abs(mean - (0.95 * np.array([200, 40, 90]))).max() < 20


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_colour_is_seen_in_its_part_alone(part: str, world: tuple[Scene, Identity, Motion]) -> None:
    scene, identity, motion = world
    field = "bottom_colour" if part == "trousers" else part
    parts, truth = draw_parts(*world, TIMES, *SIZE), drawn(*world)
    lighter = tuple(min(255, value + 60) for value in getattr(identity, field))
    changed = drawn(scene, replace(identity, **{field: lighter}), motion)
    expected = np.mean([new - old for new, old in zip(lighter, getattr(identity, field), strict=True)]) / 255
    for other in PARTS:
        error = colour_error(changed, truth, parts[other])
        if other == part:
            assert error == pytest.approx(expected, rel=0.15)
        else:
            assert error < 0.1 * expected


def test_the_truth_has_no_error_and_a_hidden_part_none_to_tell(world: tuple[Scene, Identity, Motion]) -> None:
    truth = drawn(*world)
    region = draw_parts(*world, TIMES, *SIZE)["hair"]
    assert colour_error(truth, truth, region) == 0
    assert np.isnan(colour_error(truth, truth, np.zeros_like(region)))
    assert colour_error(truth - 0.25, truth, region) == pytest.approx(0.25, abs=1e-5)

"""`xdyna-train evaluate`: how well a model animates people it has never seen, against what the world itself draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from xdyna_model.conditions import Conditions
from xdyna_model.errors import InputError

from xdyna_train import evaluation_figures as figures
from xdyna_train.ablations import CONTROLS
from xdyna_train.evaluation_cases import FRAMES, Case, draw_cases, read_out_rng
from xdyna_train.evaluation_figures import Comparison, Figure, Measured, colour_errors, measure, unit
from xdyna_train.metrics.expression import ReadOut, fit_read_out
from xdyna_train.metrics.intervals import bootstrap

# Called before each part of the work with its name and number of clips; gives what to call after each clip.
Stage = Callable[[str, int], Callable[[], object]]

SWAPPED_CASES = 16  # at most; the correlation needs more people than the other controls
CONTROL_CASES = 8
# The figures that a control is made for. It has failed as it must when one that the whole model passes does not.
OWN_FIGURES: Mapping[str, Sequence[Figure]] = {
    "adapter off": (figures.COLOUR,),
    "control off": (figures.IOU_GAIN, figures.JOINTS, figures.RETRIEVAL),
    "motion modules off": (figures.FLOW_SIZE, figures.FLICKER),
}


@dataclass(frozen=True)
class Row:
    """A figure of the table. low, high: 95 % interval over identities. truth, copy: the same figure of the truth itself
    and of the copied reference, None where that says nothing. passed: None without a bar."""

    name: str
    value: float
    low: float
    high: float
    truth: float | None
    copy: float | None
    bar: str
    passed: bool | None


@dataclass(frozen=True)
class ControlRow:
    """A figure with a part of the model off, beside the whole model on the same cases."""

    control: str
    name: str
    whole: float
    off: float
    bar: str
    whole_passed: bool
    off_passed: bool

    @property
    def caught(self) -> bool:
        return self.whole_passed and not self.off_passed


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was asked, and what came of it. results: [F, H, W, 3] float32 in [0, 1] for each of cases."""

    seed: int
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    controls: tuple[ControlRow, ...]
    cases: list[Case]
    results: list[np.ndarray]
    measured: Measured

    @property
    def caught(self) -> dict[str, bool]:
        """For each control that was run, whether one of its own figures failed that the whole model passes."""
        return {
            name: any(row.caught for row in self.controls if row.control == name)
            for name in dict.fromkeys(row.control for row in self.controls)
        }

    @property
    def passed(self) -> bool:
        return all(row.passed is not False for row in self.rows) and all(self.caught.values())


def evaluate(
    pipeline: Any,
    identities: int = 32,
    seed: int = 0,
    *,
    frames: int = FRAMES,
    controls: bool = True,
    settings: Mapping[str, Any] | None = None,
    stage: Stage | None = None,
) -> Evaluation:
    """Animates held-back people with a model, and measures what came out.

    pipeline: anything that is called as `XDynaPipeline` is and has its default_height and default_width; controls
        need the pipeline itself, whose parts they turn off and on again.
    identities: how many, each with a scene, a motion and a noise of its own, all drawn from `seed`.
    controls: also run with swapped face maps and with parts of the model off.
    settings: further arguments of the call, such as num_inference_steps.

    Raises InputError for fewer than two identities or frames, or a model that gives anything but F finite frames.
    """
    if identities < 2 or frames < 2:
        raise InputError(f"{identities} identities of {frames} frames cannot be compared; 2 of each at least")
    settings, stage = dict(settings or {}), stage or (lambda name, count: lambda: None)
    height, width = pipeline.default_height, pipeline.default_width
    cases = draw_cases(identities, seed, height, width, frames)
    read_out = fit_read_out(height, width, read_out_rng(seed))
    everyone = range(identities)

    def results(name: str, chosen: Sequence[int], swapped: bool = False) -> list[np.ndarray]:
        done, made = stage(name, len(chosen)), []
        for index in chosen:
            case = cases[index]
            made.append(animate(pipeline, case, case.swapped if swapped else case.conditions, settings))
            done()
        return made

    whole = results("animating", everyone)
    whole_measured = measure(cases, whole, everyone, read_out)
    comparison = _compare(cases, whole_measured, read_out)
    rows = [_row(figure, comparison, seed) for figure in figures.FIGURES]
    control_rows: list[ControlRow] = []
    if controls:
        chosen = everyone[:SWAPPED_CASES]
        swapped = measure(cases, results("swapping face maps", chosen, swapped=True), chosen, read_out)
        rows += _swapped_rows(cases, comparison, swapped, seed)
        chosen = everyone[:CONTROL_CASES]
        for name, switch in CONTROLS.items():
            with switch(pipeline):
                off = measure(cases, results(name, chosen), chosen, read_out)
            control_rows += _control_rows(name, comparison[np.array(chosen)], off)
    return Evaluation(seed, settings, tuple(rows), tuple(control_rows), cases, whole, whole_measured)


def animate(pipeline: Any, case: Case, conditions: Conditions, settings: Mapping[str, Any]) -> np.ndarray:
    """One clip with the case's own noise: [F, H, W, 3] float32 in [0, 1]. Raises InputError for anything else."""
    generator = torch.Generator().manual_seed(case.seed)  # on the CPU: the same start on every device
    clips = pipeline(case.reference, conditions, generator=generator, output_type="np", **settings).frames
    frames = np.asarray(clips[0], np.float32)
    if frames.shape != case.truth.shape or not np.isfinite(frames).all():
        raise InputError(f"the model made {list(frames.shape)}, expected {list(case.truth.shape)} of finite numbers")
    return frames


def _compare(cases: Sequence[Case], model: Measured, read_out: ReadOut) -> Comparison:
    everyone, height = range(len(cases)), cases[0].truth.shape[1]
    copies = [np.repeat(unit(case.reference)[None], len(case.truth), 0) for case in cases]
    return Comparison(
        model=model,
        truth=measure(cases, [unit(case.truth) for case in cases], everyone, read_out),
        copy=measure(cases, copies, everyone, read_out),
        stranger=np.stack([colour_errors(case, unit(case.stranger)) for case in cases]),
        expression=np.stack([case.expression for case in cases]),
        flow=np.array([case.scene.flow(height) for case in cases]),
        kinds=np.array([case.scene.kind for case in cases]),
    )


def _row(figure: Figure, comparison: Comparison, seed: int, references: bool = True) -> Row:
    value = figure.of(comparison)
    low, high = bootstrap(lambda index: figure.of(comparison[index]), len(comparison.kinds), seed)
    truth, copy = (
        figure.of(replace(comparison, model=other)) if references else None
        for other in (comparison.truth, comparison.copy)
    )
    return Row(figure.name, value, low, high, truth, copy, figure.bar, figure.passed(value))


def _swapped_rows(cases: Sequence[Case], whole: Comparison, swapped: Measured, seed: int) -> list[Row]:
    count = len(swapped.iou)
    unseen = replace(whole[np.arange(count)], model=swapped)
    shown = replace(unseen, expression=np.stack([case.swapped_expression for case in cases[:count]]))
    rows = [_row(figure, unseen, seed, references=False) for figure in figures.SWAPPED]
    return rows + [_row(figure, shown, seed, references=False) for figure in figures.SHOWN]


def _control_rows(control: str, whole: Comparison, off: Measured) -> list[ControlRow]:
    rows = []
    for figure in OWN_FIGURES[control]:
        values = figure.of(whole), figure.of(replace(whole, model=off))
        passed = [figure.passed(value) is True for value in values]
        rows.append(ControlRow(control, figure.name, *values, figure.bar, *passed))
    return rows

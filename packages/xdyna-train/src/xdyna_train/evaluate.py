"""`xdyna-train evaluate`: how well a model animates people it has never seen, against what the world itself draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from xdyna_model.conditions import Conditions
from xdyna_model.errors import InputError

from xdyna_train import evaluation_figures as figures
from xdyna_train.ablations import CONTROLS
from xdyna_train.evaluation_benchmark import Benchmark
from xdyna_train.evaluation_cases import Case
from xdyna_train.evaluation_figures import Comparison, Figure, Measured
from xdyna_train.metrics.intervals import bootstrap

# Called before each part of the work with its name and number of clips; gives what to call after each clip.
Stage = Callable[[str, int], Callable[[], object]]

SWAPPED_CASES = 16  # at most; the correlation needs more people than the other controls
CONTROL_CASES = 8
# The figures that a control is made for. It has failed as it must when one that the whole model passes does not.
OWN_FIGURES: Mapping[str, Sequence[Figure]] = {
    "adapter off": (figures.COLOUR,),
    "control off": (figures.IOU_GAIN, figures.JOINTS, figures.RETRIEVAL),
    "motion modules off": (figures.FLOW_SIZE, figures.FLOW_ANGLE, figures.ENERGY, figures.FLICKER),
}


@dataclass(frozen=True)
class Row:
    """A figure of the table. low, high: 95 % interval over identities, NaN where it hangs on one of them. truth, copy:
    the same figure of the truth itself and of the copied reference. passed: None without a bar."""

    name: str
    value: float
    low: float
    high: float
    truth: float
    copy: float
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
    """What was asked, and what came of it. results: [F, H, W, 3] float32 in [0, 1] for each case."""

    benchmark: Benchmark
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    controls: tuple[ControlRow, ...]
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


def _silent(name: str, count: int) -> Callable[[], object]:
    return lambda: None


def evaluate(
    pipeline: Any,
    benchmark: Benchmark,
    *,
    controls: bool = True,
    settings: Mapping[str, Any] | None = None,
    stage: Stage = _silent,
) -> Evaluation:
    """Animates held-back people with a model, and measures what came out.

    pipeline: anything that is called as `XDynaPipeline` is; controls need the pipeline itself, whose parts they turn
        off and on again.
    controls: also run with swapped face maps and with parts of the model off.
    settings: further arguments of the call, such as num_inference_steps.

    Raises InputError for a model that gives anything but F finite frames.
    """
    settings = dict(settings or {})
    animate_first = partial(_animate_first, pipeline, benchmark.cases, settings, stage)
    results = animate_first("animating", len(benchmark.cases))
    whole = benchmark.measure(results)
    rows = _rows(figures.FIGURES, benchmark.compare(whole), benchmark.seed)
    control_rows: list[ControlRow] = []
    if controls:
        swapped = animate_first("swapping face maps", SWAPPED_CASES, swapped=True)
        rows += _swapped_rows(benchmark, benchmark.measure(swapped))
        for name, switch in CONTROLS.items():
            with switch(pipeline):
                off = benchmark.measure(animate_first(name, CONTROL_CASES))
            control_rows += _control_rows(name, benchmark.compare(whole[np.arange(len(off.iou))]), off)
    return Evaluation(benchmark, settings, tuple(rows), tuple(control_rows), results, whole)


def _animate_first(
    pipeline: Any,
    cases: Sequence[Case],
    settings: Mapping[str, Any],
    stage: Stage,
    name: str,
    count: int,
    swapped=False,
) -> list[np.ndarray]:
    """Results of the first `count` cases, as far as there are so many."""
    chosen = cases[:count]
    done, results = stage(name, len(chosen)), []
    for case in chosen:
        results.append(animate(pipeline, case, case.swapped if swapped else case.conditions, settings))
        done()
    return results


def animate(pipeline: Any, case: Case, conditions: Conditions, settings: Mapping[str, Any]) -> np.ndarray:
    """One clip with the case's own noise: [F, H, W, 3] float32 in [0, 1]. Raises InputError for anything else."""
    generator = torch.Generator().manual_seed(case.seed)  # on the CPU: the same start on every device
    clips = pipeline(case.reference, conditions, generator=generator, output_type="np", **settings).frames
    frames = np.asarray(clips[0], np.float32)
    if frames.shape != case.truth.shape or not np.isfinite(frames).all():
        raise InputError(f"the model made {list(frames.shape)}, expected {list(case.truth.shape)} of finite numbers")
    return frames


def _rows(chosen: Sequence[Figure], comparison: Comparison, seed: int) -> list[Row]:
    def values(some: Comparison) -> list[float]:
        return [figure.of(some) for figure in chosen]

    intervals = bootstrap(lambda index: values(comparison[index]), len(comparison.kinds), seed)
    columns = zip(
        chosen,
        values(comparison),
        intervals.tolist(),
        values(replace(comparison, model=comparison.truth)),
        values(replace(comparison, model=comparison.copy)),
        strict=True,
    )
    return [
        Row(figure.name, value, low, high, truth, copy, figure.bar, figure.passed(value))
        for figure, value, (low, high), truth, copy in columns
    ]


def _swapped_rows(benchmark: Benchmark, swapped: Measured) -> list[Row]:
    first = np.arange(len(swapped.iou))
    unseen = replace(benchmark.compare(swapped), truth=benchmark.swapped_truth[first])
    given = [case.swapped_expression for case in benchmark.cases[: len(first)]]
    shown = replace(unseen, expression=np.stack(given))
    return [*_rows(figures.SWAPPED, unseen, benchmark.seed), *_rows(figures.SHOWN, shown, benchmark.seed)]


def _control_rows(control: str, whole: Comparison, off: Measured) -> list[ControlRow]:
    rows = []
    for figure in OWN_FIGURES[control]:
        values = figure.of(whole), figure.of(replace(whole, model=off))
        passed = [figure.passed(value) is True for value in values]
        rows.append(ControlRow(control, figure.name, *values, figure.bar, *passed))
    return rows

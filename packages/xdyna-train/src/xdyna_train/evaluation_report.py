"""What `xdyna-train evaluate` prints and writes."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from xdyna_model.devices import choose_device
from xdyna_model.errors import InputError
from xdyna_model.job import MAX_STEPS, NANO
from xdyna_model.outputs import staged_folder
from xdyna_model.video import encode_video

from xdyna_train.evaluate import Evaluation, Stage, evaluate
from xdyna_train.evaluation_benchmark import Benchmark
from xdyna_train.evaluation_sheet import FPS, contact_sheet, side_by_side

Say = Callable[[str], object]


def run(
    model: str | None,
    identities: int,
    seed: int,
    out: Path | None,
    controls: bool,
    device: str,
    settings: dict[str, Any],
    say: Say,
) -> Evaluation:
    """Evaluates a model folder, or the nano model; says the table line by line, and writes it into the folder `out`.

    Raises InputError for a bad model, settings out of range, a folder that is there already, or a device that is not.
    """
    start = time.monotonic()
    _check(settings)
    if out is not None:
        _check_free(out)
    pipeline = _load(model, choose_device(device))
    with _progress() as stage:
        benchmark = Benchmark.draw(identities, seed, pipeline.default_height, pipeline.default_width)
        evaluation = evaluate(pipeline, benchmark, controls=controls, settings=settings, stage=stage)
    for line in table(evaluation):
        say(line)
    if out is not None:
        write(evaluation, model, out)
        say(f"Wrote {out}: evaluation.json, sheet.png, evaluation.mp4")
    say(f"{time.monotonic() - start:.0f} s.")
    return evaluation


def _check(settings: dict[str, Any]) -> None:
    steps, guidance = settings.get("num_inference_steps", 1), settings.get("guidance_scale", 1.0)
    if not 1 <= steps <= MAX_STEPS:
        raise InputError(f"--steps {steps}: give a number from 1 to {MAX_STEPS}")
    if not 0 <= guidance < math.inf:
        raise InputError(f"--guidance {guidance:g}: give a number of at least 0; 1 and below turn it off")


def table(evaluation: Evaluation) -> Iterator[str]:
    """The figures beside their bars, a line each."""
    cases = evaluation.benchmark.cases
    frames, height, width, _ = cases[0].truth.shape
    asked = ", ".join(f"{name} {value:g}" for name, value in evaluation.settings.items()) or "the model's own settings"
    yield (
        f"{len(cases)} held-back identities, {frames} frames of {width}x{height}, {asked}; seed "
        f"{evaluation.benchmark.seed} of identities, motions, scenes and noise; 95 % intervals over identities."
    )
    yield ""
    yield f"{'':52} {'model':>7} {'95 % interval':>18} {'truth':>8} {'copy':>8}  {'bar':14}"
    for row in evaluation.rows:
        interval = "too few cases" if math.isnan(row.low) else f"[{row.low:.3f}, {row.high:.3f}]"
        yield (
            f"{row.name:52} {row.value:7.3f} {interval:>18} {row.truth:8.3f} {row.copy:8.3f}  "
            f"{row.bar:14}{_verdict(row.passed)}"
        ).rstrip()
    for control, caught in evaluation.caught.items():
        yield ""
        yield f"{control}: {'its own figure fails' if caught else 'NO FIGURE OF ITS OWN TELLS IT FROM THE WHOLE MODEL'}"
        for row in evaluation.controls:
            if row.control == control:
                yield (
                    f"{'  ' + row.name:52} {row.off:7.3f} {f'whole {row.whole:.3f}':>18} {'':17}  "
                    f"{row.bar:14}{_verdict(row.off_passed)}"
                )
    yield ""
    yield "All bars are met." if evaluation.passed else "Not all bars are met."


def write(evaluation: Evaluation, model: str | None, out: Path) -> None:
    """The folder with all numbers, the contact sheet and the video, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with staged_folder(out) as draft:
        (draft / "evaluation.json").write_text(json.dumps(_record(evaluation, model), indent=1))
        contact_sheet(evaluation.benchmark.cases, evaluation.results).save(draft / "sheet.png", optimize=True)
        encode_video(draft / "evaluation.mp4", side_by_side(evaluation.benchmark.cases, evaluation.results), FPS)


def _record(evaluation: Evaluation, model: str | None) -> dict[str, Any]:
    measured = evaluation.measured
    return {
        "model": model or "nano",
        "identities": len(evaluation.benchmark.cases),
        "seed": evaluation.benchmark.seed,
        "frames": list(evaluation.benchmark.cases[0].truth.shape),
        "settings": evaluation.settings,
        "passed": evaluation.passed,
        "figures": [_finite(asdict(row)) for row in evaluation.rows],
        "controls": [_finite(asdict(row)) for row in evaluation.controls],
        "cases": [
            {"kind": case.scene.kind, "noise": case.seed}
            | {field.name: _finite(getattr(measured, field.name)[k].tolist()) for field in fields(measured)}
            for k, case in enumerate(evaluation.benchmark.cases)
        ],
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _verdict(passed: bool | None) -> str:
    return {None: "", True: "pass", False: "FAIL"}[passed]


def _check_free(out: Path) -> None:
    """Before the minutes of work: what `staged_folder` would refuse after them."""
    empty = out.is_dir()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({(error.strerror or str(error)).lower()})") from error
    with staged_folder(out):
        pass
    if not empty:  # it was the user's
        Path(os.path.realpath(out)).rmdir()


def _load(model: str | None, device: torch.device) -> Any:
    from xdyna_model.model_folder import load_pipeline

    pipeline = load_pipeline(NANO if model is None else model)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def _progress() -> Iterator[Stage]:
    """One bar on stderr for all parts in turn, nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("drawing cases", total=None)

        def stage(name: str, count: int) -> Callable[[], object]:
            bar.reset(task, description=name, total=count)
            return partial(bar.advance, task)

        yield stage

"""`xdyna animate`: a photo and a driving video in, a video out."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xdyna_model.devices import choose_device, choose_dtype, return_freed_memory
from xdyna_model.driving import Motion, Stage, read_motion
from xdyna_model.errors import InputError
from xdyna_model.images import fit, read_reference
from xdyna_model.job import NANO, Job, choose_size
from xdyna_model.outputs import staged
from xdyna_model.preview import contact_sheet, side_by_side
from xdyna_model.video import check_length, count_frames, encode_video

if TYPE_CHECKING:
    from xdyna_model.pipeline import XDynaPipeline

Say = Callable[[str], object]

PUPPETS_ONLY = "No --model: the built-in nano model, which has seen nothing but drawn puppets."


def animate(job: Job, say: Say = print) -> None:
    """Do a job that `check_job` let pass: read, compute, write. `say` is given a line at a time for the user.

    Raises InputError for all that the user can put right; no file is written or changed then.
    """
    start = time.monotonic()
    device = choose_device(job.device)
    dtype = choose_dtype(job.dtype, device)
    photo = read_reference(job.photo)
    first, *others = job.videos.values()
    length = count_frames(first) if job.length is None and others else job.length
    if length is not None:  # before the minutes that a model and a detector can take
        for path in job.videos.values():
            check_length(path, length)
    with _progress() as stage:
        pipeline = load(job, device, dtype, say)
        job = replace(
            job,
            steps=pipeline.default_steps if job.steps is None else job.steps,
            guidance=pipeline.default_guidance if job.guidance is None else job.guidance,
        )
        height, width = choose_size(job, pipeline.default_height, pipeline.default_width)
        motion = read_motion(job, height, width, stage)
        if motion.gaps:
            say(motion.gaps)
        say(_describe(job, motion, device, dtype))
        result = compute(pipeline, photo, motion, job, stage)
        write(job, fit(photo, height, width), motion, result)
    say(f"Wrote {', '.join(map(str, reversed(job.outputs)))} in {time.monotonic() - start:.0f} s.")


def load(job: Job, device: torch.device, dtype: torch.dtype, say: Say) -> "XDynaPipeline":
    """The pipeline of the job's model, or the nano model, on its device.

    Raises InputError for a bad model, or more steps than its scheduler can do.
    """
    from xdyna_model.component_fit import check_steps
    from xdyna_model.model_folder import load_pipeline

    if job.model is None:
        say(PUPPETS_ONLY)
    if device.type == "cpu":
        return_freed_memory()
    pipeline = load_pipeline(NANO if job.model is None else job.model, dtype)
    if job.steps is not None:  # before a detector's minutes; the model's own have been checked
        check_steps(pipeline.scheduler, job.steps)
    pipeline.to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def compute(pipeline: "XDynaPipeline", photo: np.ndarray, motion: Motion, job: Job, stage: Stage) -> np.ndarray:
    """Animate a photo, [H', W', 3] uint8, uncropped: the image tokens see more of it. Returns [F, H, W, 3] uint8.

    Raises InputError where the numbers ran out of the range of the dtype.
    """
    pipeline.scheduler.set_timesteps(job.steps)
    advance = stage("animating", len(pipeline.scheduler.timesteps))  # some ask for several calls a step

    def after_step(_pipeline: object, _step: int, _timestep: object, tensors: dict) -> dict:
        advance()
        return tensors

    latents = pipeline(
        photo,
        motion.conditions,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        wrap=job.loop,
        generator=torch.Generator().manual_seed(job.seed),  # on the CPU: the same start on every device
        output_type="latent",
        callback_on_step_end=after_step,
        return_dict=False,
    )[0]
    conditions = motion.conditions
    result = np.empty((conditions.num_frames, conditions.height, conditions.width, 3), np.uint8)
    for index, frame in enumerate(pipeline.iter_decoded(latents)):  # a long clip in float32 may fill the memory
        if not torch.isfinite(frame).all():
            raise InputError("the result is not a number in places: too coarse a dtype; use --dtype fp32, or bf16")
        pixels = (frame.float() * 255).round().clamp(0, 255).to(torch.uint8)
        result[index] = pixels.permute(1, 2, 0).cpu().numpy()
    return result


def write(job: Job, reference: np.ndarray, motion: Motion, result: np.ndarray) -> None:
    """Write the result and its previews, all or none. reference: [H, W, 3]; result: [F, H, W, 3]; uint8."""
    fps = job.fps or motion.fps
    with staged(*job.outputs) as drafts:
        encode_video(drafts[-1], result, fps)
        if job.preview:
            conditions = motion.conditions
            streams = {
                "reference": reference[None],
                **({} if motion.driving is None else {"driving": motion.driving}),
                "pose": conditions.pose,
                "face, parts": conditions.face_local,
                "face, whole": conditions.face_global,
                "result": result,
            }
            encode_video(drafts[0], side_by_side(streams), fps)
            contact_sheet(streams).save(drafts[1])


def _describe(job: Job, motion: Motion, device: torch.device, dtype: torch.dtype) -> str:
    count, height, width = motion.conditions.pose.shape[:3]
    by = next(iter(job.videos.values())).name
    long = "" if count <= 16 else f", windows {'wrap round (--loop)' if job.loop else 'do not wrap (--no-loop)'}"
    numbers = str(dtype).removeprefix("torch.")
    return (
        f"Animating {job.photo.name} with {by}: {count} frames of {width}x{height}, {job.steps} steps, "
        f"guidance {job.guidance:g}, seed {job.seed}, {numbers} on {device}{long}."
    )


@contextmanager
def _progress() -> Iterator[Stage]:
    """One bar on stderr for all stages in turn, nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    quiet = not console.is_terminal
    # Lines that are said meanwhile go above the bar, unless they are being collected elsewhere.
    with Progress(*columns, console=console, transient=True, disable=quiet, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("loading", total=None)

        def stage(name: str, steps: int | None) -> Callable[[], object]:
            bar.reset(task, description=name, total=steps)
            return partial(bar.advance, task)

        yield stage

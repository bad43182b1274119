"""The command `xdyna-train`. Heavy imports wait inside the commands, so that `xdyna-train --help` answers at once."""

import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from xdyna_model.errors import InputError
from xdyna_model.refusals import refuse_empty, refusing

from xdyna_train.config import PRESETS

app = typer.Typer(
    help="Prepare clips, train X-Dyna, and measure what it makes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_OUT_OF_MEMORY = (
    "fit with a larger --accumulate or a smaller --batch, draw or prepare with fewer --workers, or evaluate with "
    "--device cpu"
)
# Starting a process that draws takes as long as drawing so many clips.
_CLIPS_PER_WORKER = 64


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `xdyna-train` with argv, or the process's arguments, and exit: 0 done, 1 a bar of the evaluation is missed or
    training has stopped, on SIGTERM too, 2 bad input (one line on stderr says what), 130 interrupted. Any other failure
    is a defect here and raises."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr does by itself: the bytes of a path need be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    with refusing("xdyna-train", _OUT_OF_MEMORY):
        refuse_empty(sys.argv[1:] if argv is None else argv)
        app(args=argv, prog_name="xdyna-train")
    raise AssertionError("typer exits by itself")


@app.callback()
def _commands() -> None:
    """Without this, typer would take a single command for the whole program."""


@app.command()
def puppets(
    out: Annotated[Path, typer.Option(help="Folder to write; it must not be there yet.")],
    clips: Annotated[int, typer.Option(help="How many clips to draw.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "112x64",
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    scenes: Annotated[float, typer.Option(help="Share of clips that show a scene without people, 0 to 1.")] = 0.3,
    workers: Annotated[
        int | None, typer.Option(help="Processes that draw. Default: as many as there are cores.")
    ] = None,
) -> None:
    """Draw puppet clips with their truth: joints, faces, masks, scenes, expressions."""
    height, width = _size(size)
    from rich.console import Console
    from rich.progress import Progress

    from xdyna_train.puppet_clips import PuppetSet, write_puppets

    puppet_set = PuppetSet(clips, seed, height, width, frames, scenes)
    if workers is None:
        workers = min(os.cpu_count() or 1, 1 + clips // _CLIPS_PER_WORKER)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("puppets", total=clips)
        records = write_puppets(puppet_set, out, workers, lambda drawn: bar.update(task, completed=drawn))
    people = sum(record.kind == "human" for record in records)
    typer.echo(f"Wrote {out}: {len(records)} clips, {people} with a puppet, {len(records) - people} of a scene alone")


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Folder of videos, or a text file of one path a line.")],
    out: Annotated[Path, typer.Option(help="Folder to write. The same command again does what is missing.")],
    height: Annotated[int, typer.Option(help="Of the clips, in pixels, a multiple of 8.")] = 896,
    width: Annotated[int, typer.Option(help="Of the clips, in pixels, a multiple of 8.")] = 512,
    min_seconds: Annotated[float, typer.Option(help="Shorter scenes are dropped.")] = 1.0,
    max_seconds: Annotated[float, typer.Option(help="Longer scenes are cut, into equal clips if possible.")] = 30.0,
    min_quality: Annotated[float, typer.Option(help="0 to 1; clips with a lower score are dropped.")] = 0.2,
    quality_model: Annotated[
        Path | None, typer.Option(help="ONNX model of 0 to 100, KonIQ-style, in place of the embedded score.")
    ] = None,
    dwpose: Annotated[
        Path | None, typer.Option(help="Folder with DWPose's two ONNX files, in place of mediapipe.")
    ] = None,
    max_enlargement: Annotated[float, typer.Option(help="People and scenes that are smaller are dropped.")] = 2.0,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes. Default: one a core. 0: this one alone, without Ray.")
    ] = None,
) -> None:
    """Cut videos into clips with their poses, faces and masks. RAY_ADDRESS names a cluster to work on."""
    from rich.console import Console
    from rich.progress import Progress

    from xdyna_train.prepare import prepare as run
    from xdyna_train.prepare_options import PrepareOptions

    options = PrepareOptions(
        height=height,
        width=width,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        min_quality=min_quality,
        max_enlargement=max_enlargement,
        dwpose=dwpose,
        quality_model=quality_model,
    )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("videos", total=None)
        report = run(
            source, out, options, workers=workers, on_video=lambda done, of: bar.update(task, completed=done, total=of)
        )
    for line in report.lines():
        typer.echo(line)
    typer.echo(f"Wrote {out}; what was dropped, and why: {out / 'dropped.jsonl'}")


@app.command()
def fit(
    preset: Annotated[str, typer.Option(help=f"What the run is: {', '.join(PRESETS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: metrics.jsonl, checkpoints, samples, model.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of shards, also more than one. Default: puppets, drawn on the fly."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of all stages together, shared as in the preset. Default: the preset's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of first weights, clips and noise.")] = 0,
    resume: Annotated[
        str | None, typer.Option(help="auto: go on from the newest whole checkpoint in --out, if there is one.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Pipeline folder to start from, in place of the preset's.")] = None,
    sd15: Annotated[Path | None, typer.Option(help="Preset paper: folder of Stable Diffusion 1.5.")] = None,
    motion: Annotated[Path | None, typer.Option(help="Preset paper: AnimateDiff v1's motion modules.")] = None,
    image_encoder: Annotated[Path | None, typer.Option(help="Preset paper: folder of IP-Adapter's CLIP.")] = None,
    ip_adapter: Annotated[Path | None, typer.Option(help="Preset paper: IP-Adapter-Plus weights.")] = None,
    reenactor: Annotated[
        Path | None, typer.Option(help="ONNX model that reenacts faces. Default: faces are warped by their landmarks.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes beside each that trains, which make clips. Default: the preset's, for few cores."),
    ] = None,
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun: share the weights out, too (FSDP); without sample videos.")
    ] = False,
    batch: Annotated[
        int | None, typer.Option(help="Clips of a step, over all processes, in each stage. Default: the preset's.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a step is computed in, where it does not fit the memory at once.")
    ] = None,
    prediction: Annotated[
        str | None, typer.Option(help="epsilon, v_prediction or sample. Default: that of the model it starts from.")
    ] = None,
    snr_gamma: Annotated[
        float | None, typer.Option(help="Min-SNR weighting of the timesteps, 5 in its paper. Default: the preset's.")
    ] = None,
) -> None:
    """Train, stage by stage. Also under torchrun: `torchrun --nproc_per_node 2 -m xdyna_train fit ...`."""
    from xdyna_model.cli import quiet

    quiet()
    from xdyna_train.fit_command import FitJob, run
    from xdyna_train.starts import StartFiles
    from xdyna_train.train import TrainingStopped

    files = StartFiles(init, sd15, motion, image_encoder, ip_adapter)
    changes = {"batch": batch, "accumulate": accumulate, "prediction": prediction, "snr_gamma": snr_gamma}
    job = FitJob(preset, out, tuple(data or ()), steps, seed, resume, files, reenactor, workers, shard, **changes)
    try:
        run(job, typer.echo)
    except TrainingStopped as error:
        print(f"xdyna-train: stopped: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def evaluate(
    model: Annotated[str | None, typer.Option(help="Model folder or hub id. Default: the nano model.")] = None,
    identities: Annotated[
        int,
        typer.Option(
            min=4,
            help="Held-back people to animate: at least one for each of the four kinds of scenes that have a figure.",
        ),
    ] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of people, motions, scenes and noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder to write: numbers as JSON, a sheet, a video.")] = None,
    controls: Annotated[bool, typer.Option(help="Also run with parts of the model off.")] = True,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps. Default: the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance. Default: the model's.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:1 and so on.")] = "auto",
) -> None:
    """Animate puppets that training never saw, and measure the result. Exit code 1: a bar is missed."""
    from xdyna_model.cli import quiet

    quiet()
    from xdyna_train.evaluation_report import run

    asked = {"num_inference_steps": steps, "guidance_scale": guidance}
    settings = {name: value for name, value in asked.items() if value is not None}
    evaluation = run(model, identities, seed, out, controls, device, settings, typer.echo)
    raise typer.Exit(0 if evaluation.passed else 1)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None:
        raise InputError(f"--size {text}: give HEIGHTxWIDTH in pixels, such as 112x64")
    return int(found[1]), int(found[2])

"""`xdyna-train fit`: a preset and a data set in, a trained pipeline folder out."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from xdyna_model.errors import InputError
from xdyna_model.outputs import check_output, staged
from xdyna_model.pipeline import XDynaPipeline

from xdyna_train.checkpoint import MOST_STEPS
from xdyna_train.clips import ExampleSource
from xdyna_train.config import GOES_ON, PRESETS, Config, Prediction
from xdyna_train.control_influence import Influence, control_influence
from xdyna_train.encoding import Encoders
from xdyna_train.fusion import Batch, FusionDataset, Place
from xdyna_train.journal import METRICS
from xdyna_train.puppet_source import PuppetSource
from xdyna_train.reenactment_onnx import OnnxReenactor
from xdyna_train.sample_video import SampleVideo
from xdyna_train.shard_source import ShardSource
from xdyna_train.shards import MANIFEST
from xdyna_train.starts import StartFiles, starting_pipeline
from xdyna_train.train import check, fit
from xdyna_train.training_run import set_prediction

Say = Callable[[str], object]

RESIDUALS = "residuals.json"
# Of the clip that is looked at while training goes on; no run has so many steps.
_LOOKED_AT = 2**31


@dataclass(frozen=True)
class FitJob:
    """The options of `xdyna-train fit`, by the same names. resume: None or "auto"."""

    preset: str
    out: Path
    data: tuple[Path, ...] = ()
    steps: int | None = None
    seed: int = 0
    resume: str | None = None
    files: StartFiles = field(default_factory=StartFiles)
    reenactor: Path | None = None
    workers: int | None = None
    shard: bool = False
    batch: int | None = None
    accumulate: int | None = None
    prediction: str | None = None
    snr_gamma: float | None = None


def run(job: FitJob, say: Say) -> None:
    """Trains as asked; every process of `torchrun` calls it alike. `say` is given lines for the user.

    Writes metrics.jsonl, checkpoints, samples, residuals.json and model, a pipeline folder, into `job.out`.
    Raises InputError for all that the user can put right, and what `train.fit` raises.
    """
    config = check_job(job)
    torch.manual_seed(job.seed)
    if "LOCAL_RANK" in os.environ and not torch.cuda.is_available():
        torch.set_num_threads(1)  # as torchrun asks of OpenMP: the processes share the cores
    source, config, notes = _source(job, config)
    check(config, int(os.environ.get("WORLD_SIZE", 1)))  # before a large model is read
    pipeline = starting_pipeline(config.model, job.files, job.seed)
    pipeline.register_to_config(shared_noise=config.shared_noise)  # before anything is measured
    set_prediction(pipeline, config)
    if torch.cuda.is_available():
        pipeline.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))))
    first = int(os.environ.get("RANK", 0)) == 0
    say = say if first else lambda _line: None
    for note in notes:
        say(note)
    say(f"{job.preset}: {config.total_steps} steps, " + ", ".join(f"{s.steps} of {s.name}" for s in config.stages))
    batch = _looked_at(pipeline, source, config, job.seed)
    sampler, begun = SampleVideo(batch, job.out, job.seed), partial(_report, "before", pipeline, batch, job.out, say)
    fit(pipeline, source, config, job.out, job.seed, job.resume == "auto", sampler, begun)
    if first:
        _report("after", pipeline, batch, job.out, say)
    model = job.out / "model"
    say(f"Wrote {model}; use it with: xdyna animate --model {model}")


def check_job(job: FitJob) -> Config:
    """The numbers of the run as far as the data does not decide them. Raises InputError for a job that cannot be."""
    if job.preset not in PRESETS:
        raise InputError(f"--preset {job.preset}: is unknown; choose from {', '.join(PRESETS)}")
    if job.resume not in (None, "auto"):
        raise InputError(f"--resume {job.resume}: is unknown; the only way is auto, from the newest whole checkpoint")
    for name, number, least, most in (
        ("steps", job.steps, 1, MOST_STEPS),
        ("batch", job.batch, 1, 2**16),
        ("accumulate", job.accumulate, 1, 2**16),
        ("workers", job.workers, 0, 2**10),
    ):
        if number is not None and number < least:
            raise InputError(f"--{name} {number}: give a number of at least {least}")
        if number is not None and number > most:
            raise InputError(f"--{name} {number}: give a number of at most {most}")
    if not 0 <= job.seed < 2**63:
        raise InputError(f"--seed {job.seed}: give a number of at least 0, and below 2**63")
    if job.snr_gamma is not None and not 0 < job.snr_gamma < math.inf:
        raise InputError(f"--snr-gamma {job.snr_gamma:g}: give a number above 0, such as 5")
    if job.prediction is not None and job.prediction not in get_args(Prediction):
        raise InputError(f"--prediction {job.prediction}: is unknown; choose from {', '.join(get_args(Prediction))}")
    if job.reenactor is not None and not job.data:
        raise InputError("--reenactor: puppets are not reenacted, they are drawn; it goes with --data")
    config = _changed(PRESETS[job.preset], job)
    _check_start(job, config)
    if not job.data and config.model == "sd15":
        raise InputError(f"--preset {job.preset}: trains on videos; give the folder of `xdyna-train prepare` as --data")
    try:
        job.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {job.out}: cannot be made a folder ({(error.strerror or '').lower()})") from error
    check_output(job.out / METRICS)
    return config


def _check_start(job: FitJob, config: Config) -> None:
    """Raises InputError for files that would be left unread, or a model to go on from that is not given."""
    if job.preset in GOES_ON and job.files.init is None:
        raise InputError(
            f"--preset {job.preset}: goes on from a model of {GOES_ON[job.preset]}; give that one as --init"
        )
    unread = [name for name, path in vars(job.files).items() if name != "init" and path is not None]
    if unread and (job.files.init is not None or config.model != "sd15"):
        flag = f"--{unread[0].replace('_', '-')}"
        why = "--init is a whole model" if job.files.init is not None else f"--preset {job.preset} starts from scratch"
        raise InputError(f"{flag}: would not be read, {why}; leave it out")


def _changed(config: Config, job: FitJob) -> Config:
    """The preset with what a job says otherwise, but for its steps."""
    numbers = {name: getattr(job, name) for name in ("workers", "accumulate", "prediction", "snr_gamma")}
    config = replace(config, **{name: number for name, number in numbers.items() if number is not None})
    if job.batch is not None:
        config = replace(config, stages=tuple(replace(stage, batch=job.batch) for stage in config.stages))
    return replace(config, shard=config.shard or job.shard)


def _digest(job: FitJob) -> str:
    """Of what a data set holds, and of the reenactor."""
    digest = hashlib.sha256()
    for path in [*(folder / MANIFEST for folder in job.data), *([job.reenactor] if job.reenactor else [])]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _source(job: FitJob, config: Config) -> tuple[ExampleSource, Config, list[str]]:
    """Where clips come from, the run with its number of steps, and what the user is to be told of them."""
    if not job.data:
        source, notes = PuppetSource(config.height, config.width), []
    else:
        reenactor = None if job.reenactor is None else OnnxReenactor(job.reenactor)
        source = ShardSource(job.data, config.height, config.width, reenactor)
        config, notes = _for_data(replace(config, data=_digest(job)), source)
    if job.steps is not None:
        config = config.lasting(job.steps)
    return source, config, notes


def _for_data(config: Config, source: ShardSource) -> tuple[Config, list[str]]:
    """The stages for the kinds of clips that there are, their epochs as steps."""
    stages, notes = [], []
    for stage in config.stages:
        humans, scenes = (source.count(kind, stage.frames) for kind in ("human", "scene"))
        if stage.human_share > 0 and not humans:
            raise InputError(f"{source}: no clip shows a person for {stage.frames} frames; prepare such videos")
        if stage.human_share < 1 and not scenes:
            notes.append(f"no clips of scenes in {source}: stage {stage.name} trains on people alone")
            stage = replace(stage, human_share=1.0)
        clips = humans + (scenes if stage.human_share < 1 else 0)
        steps = math.ceil(stage.epochs * clips / stage.batch) if stage.epochs else stage.steps
        stages.append(replace(stage, steps=steps))
    return replace(config, stages=tuple(stages)), notes


def _looked_at(pipeline: XDynaPipeline, source: ExampleSource, config: Config, seed: int) -> Batch:
    """One clip of the longest stage, of a person where that stage has any: of puppets, one that training never sees."""
    index = max(range(len(config.stages)), key=lambda k: config.stages[k].frames)
    stages = tuple(replace(stage, human_share=float(stage.human_share > 0)) for stage in config.stages)
    data = FusionDataset(
        source, replace(config, stages=stages, drop_condition=0.0), seed, Encoders(pipeline).preprocess
    )
    return data[Place(index, _LOOKED_AT, 0)]


def _report(moment: str, pipeline: XDynaPipeline, batch: Batch, out: Path, say: Say) -> None:
    """Measures the ControlNets' influence, says it, and writes it to residuals.json beside what is known there."""
    path = out / RESIDUALS
    known: dict[str, Influence] = {}
    if moment == "after" and path.exists():
        known = json.loads(path.read_text())
    known[moment] = control_influence(pipeline, batch.to(pipeline.device))
    with staged(path) as [draft]:
        draft.write_text(json.dumps(known, indent=2) + "\n")
    shares = (f"{k} {100 * v['real']:.1f} % ({100 * v['blank']:.1f} % on blank maps)" for k, v in known[moment].items())
    say(f"Mean residual {moment} training, of the denoiser's own features: {', '.join(shares)}")

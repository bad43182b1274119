"""The training loop."""

import json
import math
import shutil
import sys
import time
import traceback
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from xdyna_model.errors import InputError
from xdyna_model.outputs import staged_folder
from xdyna_model.pipeline import XDynaPipeline

from xdyna_train.averages import Averages
from xdyna_train.checkpoint import load_latest, save_checkpoint
from xdyna_train.clips import ExampleSource
from xdyna_train.config import Config, Stage
from xdyna_train.encoding import Encoders
from xdyna_train.engine import attention_for, captured, new_accelerator
from xdyna_train.fusion import Batch, FusionDataset, collate, places
from xdyna_train.journal import METRICS, Journal
from xdyna_train.loss import add_noise, denoising_loss, target, timestep_weights
from xdyna_train.sharing import bring_together, optimizer_parts, part_like, share_out, whole
from xdyna_train.termination import noted_termination, pass_over_first_termination
from xdyna_train.trainee import Trainee, frozen_hash, train_only

Sampler = Callable[[XDynaPipeline, int], None]  # is given the pipeline with the averaged weights, and the step

# Numbers that may change when a run is resumed: they do not change what it learns.
_FREE = {
    "workers",
    "checkpoint_every",
    "sample_every",
    "keep_checkpoints",
    "gradient_checkpointing",
    "shard",
    "cuda_graphs",
    "note",
}


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why, and where what is needed to look into it was saved."""


def fit(
    pipeline: XDynaPipeline,
    source: ExampleSource,
    config: Config,
    out: Path,
    seed: int = 0,
    resume: bool = False,
    sampler: Sampler | None = None,
) -> None:
    """Trains a pipeline in place, stage by stage, and leaves the averaged weights in it (where they are shared out, in
    the main process's alone).

    Writes out/metrics.jsonl, out/checkpoints and out/model. Started by `torchrun`, each process calls it alike; `out`
    is then on a disk that all of them see. Nothing that is random here comes from the global generators.

    Args:
        source: asked by every process for the clips of its share of the batch.
        resume: go on from the newest whole checkpoint in `out`; without one, start anew.
        sampler: called in the main process every `sample_every` steps; not where the weights are shared out. What it
            raises is printed, not raised.

    Raises:
        InputError: a number does not fit, clips cannot be read, the disk is full, `out` holds another run.
        TrainingStopped: a loss or gradient that is not a number, frozen weights that changed, or SIGTERM, which ends a
            run with a checkpoint of the step it came in.
    """
    accelerator = new_accelerator(config.precision)
    check(config, accelerator.num_processes)
    if not resume and any((out / name).exists() for name in (METRICS, "checkpoints", "model")):
        raise InputError(f"{out}: holds a training run; resume it with --resume auto, or give another folder")
    accelerator.wait_for_everyone()  # all have looked before one writes
    run = _Run(pipeline, source, config, out, seed, accelerator, sampler)
    start = run.restore() if resume else 0
    done = 0
    with run.journal(start), attention_for(accelerator.device), noted_termination() as run.termination:
        for index, stage in enumerate(config.stages):
            first = max(0, start - done)
            if first < stage.steps:
                run.stage(index, done, range(first, stage.steps))
            done += stage.steps
    run.finish()


def check(config: Config, processes: int) -> None:
    """Raises InputError for numbers that do not fit together."""
    for stage in config.stages:
        if stage.batch % (processes * config.accumulate):
            raise InputError(
                f"stage {stage.name}: a batch of {stage.batch} clips cannot be shared by {processes} processes in "
                f"{config.accumulate} parts each"
            )
        if stage.steps < 1:
            raise InputError(f"stage {stage.name}: {stage.steps} steps; at least 1")
    if config.shard and processes == 1:
        raise InputError("one process has nobody to share the weights with; start several with torchrun")
    if config.shard and config.precision == "fp16":
        raise InputError("weights that are shared out train in bf16, or with precision no; not in fp16")
    for name in ("checkpoint_every", "sample_every", "keep_checkpoints"):
        if getattr(config, name) < 1:
            raise InputError(f"{name}: {getattr(config, name)}; at least 1")


class _Run:
    """What a run holds while it lasts."""

    def __init__(self, pipeline, source, config, out, seed, accelerator, sampler):
        self.pipeline: XDynaPipeline = pipeline
        self.config: Config = config
        self.out: Path = out
        self.accelerator: Accelerator = accelerator
        self.sampler: Sampler | None = None if config.shard else sampler  # all would have to take part
        pipeline.to(accelerator.device)
        self.trainee = Trainee(pipeline)
        if config.gradient_checkpointing:
            for net in (pipeline.unet, pipeline.controlnet, pipeline.controlnet_face):
                net.enable_gradient_checkpointing()
        pipeline.register_to_config(shared_noise=config.shared_noise)
        if config.prediction is not None:
            pipeline.scheduler.register_to_config(prediction_type=config.prediction)
        self.encoders = Encoders(pipeline)
        self.nets = nn.ModuleList([self.trainee, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder])
        self.data = FusionDataset(source, config, seed, self.encoders.preprocess)
        if config.shard:
            share_out(self.trainee)
        self.numbers = json.dumps({"seed": seed, **asdict(config)})
        self.averages = Averages(config.ema_decay)
        self.optimizer_state: dict[str, Any] | None = None
        self.termination: Callable[[], bool] = lambda: False
        self.ending = False  # whether a process was asked to end in the last step

    @contextmanager
    def journal(self, start: int) -> Iterator[None]:
        """Opens the record of the run at a step."""
        with Journal(self.out, self.config.total_steps, start, self.accelerator.is_main_process) as self.record:
            yield

    def restore(self) -> int:
        """Takes up the newest whole checkpoint; returns the steps done, 0 without one."""
        found = load_latest(self.out / "checkpoints")
        step = found[0] if found else 0
        if len(set(gather_object([step]))) > 1:
            raise InputError(f"{self.out}: not all processes find the same checkpoint there; use a disk they share")
        if found is None:
            return 0
        _, state, damaged = found
        before, now = json.loads(state["config"]), json.loads(self.numbers)
        other = [name for name in now if name not in _FREE and before.get(name, now[name]) != now[name]]
        if other:
            raise InputError(f"{self.out}: was trained with another {', '.join(other)}; give another folder")
        if damaged and self.accelerator.is_main_process:
            print(f"passed over as damaged: {', '.join(map(str, damaged))}", file=sys.stderr)
        ends = list(accumulate(stage.steps for stage in self.config.stages))
        learning = self._begin(self.config.stages[bisect_left(ends, step)])
        shared = self.trainee.state_dict()
        self.trainee.load_state_dict({name: part_like(x, shared[name]) for name, x in state["weights"].items()})
        if state["frozen"] != frozen_hash(self.nets):
            raise InputError(f"{self.out}: was begun from another model; give the same one to start from")
        averages = [part_like(x, like) for x, like in zip(state["ema"]["shadow_params"], learning, strict=True)]
        self.averages.load_state_dict({**state["ema"], "shadow_params": averages})
        self.optimizer_state = optimizer_parts(state["optimizer"], learning)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return step

    def _begin(self, stage: Stage) -> list[nn.Parameter]:
        """Freezes all but a stage's parts; returns what learns."""
        learning = train_only(self.trainee, stage.train)
        self.averages.begin(stage.train, learning)
        return learning

    def stage(self, index: int, done: int, steps: range) -> None:
        """One stage; done: steps of the stages before it."""
        config, stage, accelerator = self.config, self.config.stages[index], self.accelerator
        learning = self._begin(stage)
        self.frozen = frozen_hash(self.nets)
        optimizer = torch.optim.AdamW(
            learning,
            config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if steps.start and self.optimizer_state is not None:  # not that of the stage before
            optimizer.load_state_dict(self.optimizer_state)
        self.optimizer_state = None
        with self._captured(index, stage, steps.start), closing(self._batches(index, stage, steps)) as batches:
            # What is shared out needs no DDP: it adds up its gradients itself. And `prepare` would take the bare model
            # of a later stage for one that it has prepared, and leave autocast out.
            model = accelerator.prepare_model(self.trainee, evaluation_mode=config.shard)
            optimizer = accelerator.prepare(optimizer)
            model.train()
            for step in steps:
                rate = learning_rate(config, done + step)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                facts = self._step(model, optimizer, learning, batches, done + step + 1)
                self.averages.step()
                self.record.line(step=done + step + 1, lr=rate, stage=stage.name, **facts)
                last = step + 1 == stage.steps
                self._keep(optimizer, done + step + 1, last or self.ending)
                if self.ending and not (last and index + 1 == len(config.stages)):
                    raise TrainingStopped(f"ended by SIGTERM after step {done + step + 1}; go on with --resume auto")
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        accelerator.free_memory()

    @contextmanager
    def _captured(self, index: int, stage: Stage, step: int) -> Iterator[None]:
        """The trainee captured with the batch of a step, where CUDA graphs are asked for."""
        config, accelerator = self.config, self.accelerator
        # A graph writes its gradients to the same place each time: two parts of a step would overwrite each other.
        plain = config.accumulate > 1 or config.gradient_checkpointing or accelerator.num_processes > 1
        if not config.cuda_graphs or plain or accelerator.device.type != "cuda":
            yield
            return
        # Drawn here and once more by the loader, whose thread pins memory: that would break the capture off.
        batch = collate(
            [self.data[place] for place in next(places(index, range(step, step + 1), stage.batch, 0, 1, 1))]
        )
        self.trainee.train()
        with captured(self.trainee, self._prepare(batch.to(accelerator.device))[0], accelerator):
            yield

    def _batches(self, index: int, stage: Stage, steps: range) -> Generator[Batch]:
        config, accelerator = self.config, self.accelerator
        shares = places(
            index, steps, stage.batch, accelerator.process_index, accelerator.num_processes, config.accumulate
        )
        loader = DataLoader(
            self.data,
            batch_sampler=shares,
            collate_fn=collate,
            num_workers=config.workers,
            worker_init_fn=pass_over_first_termination,
            pin_memory=accelerator.device.type == "cuda",
        )
        try:
            yield from loader
        except InputError as error:  # a worker's comes with its traceback before the message
            raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from error

    def _step(self, model: nn.Module, optimizer: Any, learning: list, batches: Iterator[Batch], step: int) -> dict:
        accelerator, parts = self.accelerator, self.config.accumulate
        started, waited, held = time.monotonic(), 0.0, []
        total = torch.zeros(3, device=accelerator.device)  # of the loss, of clips skipped, of processes asked to end
        for part in range(parts):
            asked = time.monotonic()
            held.append(next(batches))
            waited += time.monotonic() - asked
            batch = held[-1].to(accelerator.device)
            with nullcontext() if part == parts - 1 else accelerator.no_sync(model):
                loss = self._loss(model, batch) / parts
                accelerator.backward(loss)
            total[0] += loss.detach()
            total[1] += len(batch.skipped)
        total[2] = self.termination()
        loss, num_skipped, ending = cast(Tensor, accelerator.reduce(total, "mean")).tolist()  # no loss if none in one
        self.ending = ending > 0
        norm = whole(cast(Tensor, accelerator.clip_grad_norm_(learning, self.config.clip_norm))).item()
        if not math.isfinite(loss):
            self._stop("loss", held, step)
        if not math.isfinite(norm) and accelerator.scaler is None:  # a scaler passes over such a step
            self._stop("gradient", held, step)
        optimizer.step()
        optimizer.zero_grad()
        facts = {"loss": loss, "grad_norm": norm if math.isfinite(norm) else None}
        facts |= {"seconds": time.monotonic() - started, "waited": waited}
        facts |= {"clips": sum(len(batch.names) for batch in held) * accelerator.num_processes}
        if num_skipped:
            facts |= {"skipped": gather_object([reason for batch in held for reason in batch.skipped])}
        return facts

    def _prepare(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the trainee is given, in its order, and what it is to predict."""
        scheduler = self.pipeline.scheduler
        encoded = self.encoders(batch)
        noisy = add_noise(scheduler, encoded.frames, encoded.noise, batch.timesteps)
        goal = target(scheduler, encoded.frames, encoded.noise, batch.timesteps)
        clip = torch.cat([encoded.reference, noisy], dim=2)
        return (clip, batch.timesteps, encoded.text, encoded.image_features, *batch.maps()), goal

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        given, goal = self._prepare(batch)
        weights = timestep_weights(self.pipeline.scheduler, batch.timesteps, self.config.snr_gamma)
        return denoising_loss(model(*given), goal, weights, batch.importance, self.config.temporal_weight)

    def _stop(self, what: str, held: list[Batch], step: int) -> None:
        """Saves what this process was given for the step. All processes come here together."""
        path = self.out / f"stopped-at-{step}-process-{self.accelerator.process_index}.pt"
        torch.save([vars(batch) for batch in held], path)
        self.accelerator.wait_for_everyone()
        names = ", ".join(name for batch in held for name in batch.names)
        raise TrainingStopped(f"the {what} of step {step} is not a number; its clips ({names}) are saved in {path}")

    def _keep(self, optimizer: Any, step: int, last: bool) -> None:
        if last or step % self.config.checkpoint_every == 0:
            if any(gather_object([frozen_hash(self.nets) != self.frozen])):  # all processes stop together
                raise TrainingStopped(f"frozen weights have changed by step {step}; the checkpoint before is sound")
            writes = self.accelerator.is_main_process
            state = {
                "weights": whole(self.trainee.state_dict(), writes),
                "ema": whole(self.averages.state_dict(), writes),
                "optimizer": whole(optimizer.state_dict(), writes),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {},
                "config": self.numbers,
                "frozen": self.frozen,
            }
            failure = None
            if writes:
                try:
                    save_checkpoint(self.out / "checkpoints", step, state, self.config.keep_checkpoints)
                except InputError as error:
                    failure = error
            if any(gather_object([failure is not None])):
                raise failure or InputError(f"{self.out}: the main process could not write a checkpoint")
        if self.sampler is not None and step % self.config.sample_every == 0 and self.accelerator.is_main_process:
            self._sample(self.sampler, step)

    def _sample(self, sampler: Sampler, step: int) -> None:
        self.trainee.eval()
        try:
            with self.averages.applied():
                sampler(self.pipeline, step)
        except Exception:  # a picture is not worth a run
            print(f"no sample of step {step}; training goes on:\n{traceback.format_exc()}", file=sys.stderr)
        finally:
            self.trainee.train()

    def finish(self) -> None:
        """Puts the averaged weights in place and writes the pipeline folder."""
        self.averages.settle()
        self.trainee.eval().requires_grad_(False)
        if self.config.shard:
            bring_together(self.pipeline, self.trainee, self.accelerator.is_main_process)
        if self.accelerator.is_main_process:
            for folder in self.out.glob(".model.*"):  # of a process that was killed while it wrote
                shutil.rmtree(folder)
            if (self.out / "model").exists():  # this run has ended before; its last checkpoint makes the same again
                shutil.rmtree(self.out / "model")
            with staged_folder(self.out / "model") as draft:
                self.pipeline.save_pretrained(draft)
        self.accelerator.wait_for_everyone()


def learning_rate(config: Config, step: int) -> float:
    """Of a step, counted from 0 over all stages: linear rise over the warm-up, then constant or half a cosine."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if not config.cosine:
        return config.learning_rate * rise
    fall = 0.5 * (1 + math.cos(math.pi * step / config.total_steps))
    return config.learning_rate * rise * (0.02 + 0.98 * fall)

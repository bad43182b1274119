"""The training loop."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from xdyna_model.errors import InputError
from xdyna_model.pipeline import XDynaPipeline

from xdyna_train.checkpoint import load_latest, save_checkpoint
from xdyna_train.clips import ExampleSource
from xdyna_train.config import Config, Stage
from xdyna_train.encoding import Encoders
from xdyna_train.fusion import Batch, FusionDataset, collate, places
from xdyna_train.journal import Journal
from xdyna_train.loss import add_noise, denoising_loss, target, timestep_weights
from xdyna_train.trainee import Trainee, frozen_hash, train_only

Sampler = Callable[[XDynaPipeline, int], None]  # is given the pipeline with the averaged weights, and the step


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
    """Trains a pipeline in place, stage by stage, and leaves the averaged weights in it.

    Writes out/metrics.jsonl, out/checkpoints and out/model. Started by `torchrun`, each process calls it alike.

    Args:
        source: asked by every process for the clips of its share of the batch.
        resume: go on from the newest whole checkpoint in `out`, if there is one.

    Raises:
        InputError: a number does not fit, clips cannot be read, the disk is full.
        TrainingStopped: a loss that is not a number, or frozen weights that changed.
    """
    accelerator = _accelerator(config)
    check(config, accelerator.num_processes)
    run = _Run(pipeline, source, config, out, seed, accelerator, sampler)
    start = run.restore() if resume else 0
    if not resume and (out / "checkpoints").exists():
        raise InputError(f"{out}: holds a training run; resume it with --resume auto, or give another folder")
    done = 0
    with run.journal(start), _cpu_attention(accelerator.device):
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


class _Run:
    """What a run holds while it lasts."""

    def __init__(self, pipeline, source, config, out, seed, accelerator, sampler):
        self.pipeline: XDynaPipeline = pipeline
        self.config: Config = config
        self.out: Path = out
        self.accelerator: Accelerator = accelerator
        self.sampler: Sampler | None = sampler
        pipeline.to(accelerator.device)
        self.trainee = Trainee(pipeline)
        if config.gradient_checkpointing:
            for net in (pipeline.unet, pipeline.controlnet, pipeline.controlnet_face):
                net.enable_gradient_checkpointing()
        self.encoders = Encoders(pipeline)
        self.data = FusionDataset(source, config, seed, self.encoders.preprocess)
        trained = {name for stage in config.stages for name in self._names(stage)}
        self.averaged = [p for name, p in self.trainee.named_parameters() if name in trained]
        self.ema = EMAModel(self.averaged, decay=config.ema_decay, foreach=True)
        self.ema.to(accelerator.device)
        self.optimizer_state: dict[str, Any] | None = None

    def _names(self, stage: Stage) -> list[str]:
        train_only(self.trainee, stage.train)
        return [name for name, p in self.trainee.named_parameters() if p.requires_grad]

    @contextmanager
    def journal(self, start: int) -> Iterator[None]:
        """Opens the record of the run at a step."""
        with Journal(self.out, self.config.total_steps, start, self.accelerator.is_main_process) as self.record:
            yield

    def restore(self) -> int:
        """Takes up the newest whole checkpoint; returns the steps done, 0 without one."""
        found = load_latest(self.out / "checkpoints")
        if found is None:
            return 0
        step, state, damaged = found
        if state["config"] != json.dumps(asdict(self.config)):
            raise InputError(f"{self.out}: was trained with other numbers; give another folder, or the same preset")
        if damaged and self.accelerator.is_main_process:
            print(f"passed over as damaged: {', '.join(map(str, damaged))}")
        self.trainee.load_state_dict(state["weights"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer_state = state["optimizer"]
        return step

    def stage(self, index: int, done: int, steps: range) -> None:
        """One stage; done: steps of the stages before it."""
        config, stage, accelerator = self.config, self.config.stages[index], self.accelerator
        trained = train_only(self.trainee, stage.train)
        before = frozen_hash(self.trainee)
        optimizer = torch.optim.AdamW(
            trained, config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        if steps.start and self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        self.optimizer_state = None
        model, optimizer = accelerator.prepare(self.trainee, optimizer)
        model.train()
        batches = self._batches(index, stage, steps)
        for step in steps:
            rate = learning_rate(config, done + step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, norm, facts = self._step(model, optimizer, trained, batches, done + step)
            self.ema.step(self.averaged)
            self.record.line(step=done + step + 1, loss=loss, grad_norm=norm, lr=rate, stage=stage.name, **facts)
            self._keep(optimizer, done + step + 1)
        del model
        if frozen_hash(self.trainee) != before:
            raise TrainingStopped(f"stage {stage.name}: frozen weights have changed")

    def _batches(self, index: int, stage: Stage, steps: range) -> Iterator[Batch]:
        config, accelerator = self.config, self.accelerator
        shares = places(
            index, steps, stage.batch, accelerator.process_index, accelerator.num_processes, config.accumulate
        )
        loader = DataLoader(
            self.data,
            batch_sampler=list(shares),
            collate_fn=collate,
            num_workers=config.workers,
            worker_init_fn=_one_thread,
            pin_memory=accelerator.device.type == "cuda",
        )
        return iter(loader)

    def _step(self, model, optimizer, trained, batches, step) -> tuple[float, float, dict[str, Any]]:
        started, waited, total = time.monotonic(), 0.0, torch.zeros((), device=self.accelerator.device)
        clips, skipped = 0, []
        for micro in range(self.config.accumulate):
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            batch = batch.to(self.accelerator.device)
            last = micro == self.config.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                loss = self._loss(model, batch) / self.config.accumulate
                self._stop_at_nan(loss, batch, step)
                self.accelerator.backward(loss)
            total += loss.detach()
            clips += len(batch.names)
            skipped += batch.skipped
        norm = self.accelerator.clip_grad_norm_(trained, self.config.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss = self.accelerator.reduce(total, "mean").item()
        seconds = time.monotonic() - started
        facts = {"seconds": seconds, "waited": waited, "clips": clips * self.accelerator.num_processes}
        return loss, float(norm), facts | ({"skipped": skipped} if skipped else {})

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        scheduler = self.pipeline.scheduler
        encoded = self.encoders(batch)
        noisy = add_noise(scheduler, encoded.frames, encoded.noise, batch.timesteps)
        goal = target(scheduler, encoded.frames, encoded.noise, batch.timesteps)
        clip = torch.cat([encoded.reference, noisy], dim=2)
        with self.accelerator.autocast():
            prediction = model(clip, batch.timesteps, encoded.text, encoded.image_features, batch.pose, batch.face)
        weights = timestep_weights(scheduler, batch.timesteps, self.config.snr_gamma)
        return denoising_loss(prediction, goal, weights, batch.importance, self.config.temporal_weight)

    def _stop_at_nan(self, loss: Tensor, batch: Batch, step: int) -> None:
        if torch.isfinite(loss):
            return
        path = self.out / f"stopped-at-{step + 1}-process-{self.accelerator.process_index}.pt"
        torch.save(asdict(batch), path)
        raise TrainingStopped(f"the loss of step {step + 1} is not a number; its batch is saved in {path}")

    def _keep(self, optimizer: Any, step: int) -> None:
        last = step == self.config.total_steps
        if (step % self.config.checkpoint_every == 0 or last) and self.accelerator.is_main_process:
            state = {
                "weights": self.trainee.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": optimizer.state_dict(),
                "config": json.dumps(asdict(self.config)),
            }
            save_checkpoint(self.out / "checkpoints", step, state, self.config.keep_checkpoints)
        if self.sampler is not None and step % self.config.sample_every == 0 and self.accelerator.is_main_process:
            with self._averaged():
                self.sampler(self.pipeline, step)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        self.ema.store(self.averaged)
        self.ema.copy_to(self.averaged)
        self.trainee.eval()
        try:
            yield
        finally:
            self.trainee.train()
            self.ema.restore(self.averaged)

    def finish(self) -> None:
        """Puts the averaged weights in place and writes the pipeline folder."""
        self.ema.copy_to(self.averaged)
        self.trainee.eval().requires_grad_(False)
        if self.accelerator.is_main_process:
            self.pipeline.save_pretrained(self.out / "model")
        self.accelerator.wait_for_everyone()


def learning_rate(config: Config, step: int) -> float:
    """Of a step, counted from 0 over all stages: linear rise over the warm-up, then constant or half a cosine."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if not config.cosine:
        return config.learning_rate * rise
    fall = 0.5 * (1 + math.cos(math.pi * step / config.total_steps))
    return config.learning_rate * rise * (0.02 + 0.98 * fall)


def _accelerator(config: Config) -> Accelerator:
    return Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


@contextmanager
def _cpu_attention(device: torch.device) -> Iterator[None]:
    """On a CPU, plain products in place of PyTorch's fused attention, whose backward in bfloat16 takes two to four
    times as long for the short sequences of small pictures."""
    if device.type != "cpu":
        yield
        return
    torch.set_flush_denormal(True)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    with sdpa_kernel([SDPBackend.MATH]):
        yield


__all__ = ["Sampler", "TrainingStopped", "fit", "learning_rate"]

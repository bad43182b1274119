"""The training loop."""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from xdyna_model.errors import InputError
from xdyna_model.pipeline import XDynaPipeline

from xdyna_train.checkpoint import checkpoints
from xdyna_train.claim import claimed
from xdyna_train.clips import ExampleSource
from xdyna_train.config import Config
from xdyna_train.engine import attention_for, captured, new_accelerator
from xdyna_train.fusion import Batch, collate, places
from xdyna_train.journal import METRICS
from xdyna_train.loss import add_noise, denoising_loss, drift_loss, target, timestep_weights
from xdyna_train.sharing import whole
from xdyna_train.termination import noted_termination, pass_over_first_termination
from xdyna_train.trainee import frozen_hash
from xdyna_train.training_run import Run, Sampler, TrainingStopped


def fit(
    pipeline: XDynaPipeline,
    source: ExampleSource,
    config: Config,
    out: Path,
    seed: int = 0,
    resume: bool = False,
    sampler: Sampler | None = None,
    begun: Callable[[], None] = lambda: None,
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
        begun: called in the main process where training starts anew, once `out` is this run's alone, before anything in
            it or in the pipeline changes.

    Raises:
        InputError: a number does not fit, clips cannot be read, the disk is full, `out` holds another run, or
            one is at work there.
        TrainingStopped: a loss or gradient that is not a number, frozen weights that changed, or SIGTERM, which ends a
            run with a checkpoint of the step it came in.
    """
    accelerator = new_accelerator(config.precision)
    check(config, accelerator.num_processes)
    if not resume and any((out / name).exists() for name in (METRICS, "checkpoints", "model")):
        raise InputError(f"{out}: holds a training run; resume it with --resume auto, or give another folder")
    accelerator.wait_for_everyone()  # all have looked before one writes
    with claimed(out, accelerator):
        if accelerator.is_main_process and not checkpoints(out / "checkpoints"):
            begun()
        run = Run(pipeline, source, config, out, seed, accelerator, sampler)
        start = run.restore() if resume else 0
        done = 0
        with run.journal(start), attention_for(accelerator.device), noted_termination() as run.termination:
            for index, stage in enumerate(config.stages):
                first = max(0, start - done)
                if first < stage.steps:
                    _Stage(run, index, done).train(range(first, stage.steps))
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


class _Stage:
    """A stage of a run, from its first step to its last."""

    def __init__(self, run: Run, index: int, done: int) -> None:
        """index: of the stage. done: steps of the stages before it."""
        self.run, self.index, self.done = run, index, done
        self.config, self.accelerator = run.config, run.accelerator
        self.stage = run.config.stages[index]
        self.ending = False  # whether a process was asked to end in the last step

    def train(self, steps: range) -> None:
        """Those of its steps that are still to be done, counted from the stage's own first."""
        run, config, stage, accelerator = self.run, self.config, self.stage, self.accelerator
        learning = run.begin(stage)
        run.frozen = frozen_hash(run.nets)
        optimizer = torch.optim.AdamW(
            learning,
            config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if steps.start and run.optimizer_state is not None:  # not that of the stage before
            optimizer.load_state_dict(run.optimizer_state)
        run.optimizer_state = None
        with self._captured(steps.start), closing(self._batches(steps)) as batches:
            # What is shared out needs no DDP: it adds up its gradients itself. And `prepare` would take the bare model
            # of a later stage for one that it has prepared, and leave autocast out.
            model = accelerator.prepare_model(run.trainee, evaluation_mode=config.shard)
            optimizer = accelerator.prepare(optimizer)
            model.train()
            for step in steps:
                number, last = self.done + step + 1, step + 1 == stage.steps
                rate = learning_rate(config, number - 1)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                facts = self._step(model, optimizer, learning, batches, number)
                run.averages.step()
                run.record.line(step=number, lr=rate, stage=stage.name, **facts)
                run.keep(optimizer, number, last or self.ending)
                if self.ending and not (last and self.index + 1 == len(config.stages)):
                    raise TrainingStopped(f"ended by SIGTERM after step {number}; go on with --resume auto")
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        accelerator.free_memory()

    @contextmanager
    def _captured(self, step: int) -> Iterator[None]:
        """The trainee captured with the batch of a step, where CUDA graphs are asked for."""
        run, config, accelerator = self.run, self.config, self.accelerator
        # A graph writes its gradients to the same place each time: two parts of a step would overwrite each other.
        plain = config.accumulate > 1 or config.gradient_checkpointing or accelerator.num_processes > 1
        if not config.cuda_graphs or plain or accelerator.device.type != "cuda":
            yield
            return
        # Drawn here and once more by the loader, whose thread pins memory: that would break the capture off.
        first = next(places(self.index, range(step, step + 1), self.stage.batch, 0, 1, 1))
        batch = collate([run.data[place] for place in first])
        run.trainee.train()
        with captured(run.trainee, self._prepare(batch.to(accelerator.device))[0], accelerator):
            yield

    def _batches(self, steps: range) -> Generator[Batch]:
        config, accelerator = self.config, self.accelerator
        shares = places(
            self.index,
            steps,
            self.stage.batch,
            accelerator.process_index,
            accelerator.num_processes,
            config.accumulate,
        )
        loader = DataLoader(
            self.run.data,
            batch_sampler=shares,
            collate_fn=collate,
            num_workers=config.workers,
            worker_init_fn=pass_over_first_termination,
            pin_memory=accelerator.device.type == "cuda",
        )
        batches = iter(loader)
        try:
            yield from batches
        except InputError as error:  # a worker's comes with its traceback before the message
            raise InputError(str(error).rstrip().rpartition("InputError: ")[2]) from error
        finally:
            # By itself PyTorch waits for nobody to know the iterator any more, as the traceback of an error does.
            getattr(batches, "_shutdown_workers", lambda: None)()

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
        total[2] = self.run.termination()
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
        scheduler = self.run.pipeline.scheduler
        encoded = self.run.encoders(batch)
        noisy = add_noise(scheduler, encoded.frames, encoded.noise, batch.timesteps)
        goal = target(scheduler, encoded.frames, encoded.noise, batch.timesteps)
        clip = torch.cat([encoded.reference, noisy], dim=2)
        return (clip, batch.timesteps, encoded.text, encoded.image_features, *batch.maps()), goal

    def _loss(self, model: nn.Module, batch: Batch) -> Tensor:
        config, (given, goal) = self.config, self._prepare(batch)
        weights = timestep_weights(self.run.pipeline.scheduler, batch.timesteps, config.snr_gamma)
        prediction, guesses = model(*given)
        loss = denoising_loss(prediction, goal, weights, batch.importance, config.temporal_weight)
        if config.drift_weight and len(guesses) and batch.drift is not None:
            loss = loss + config.drift_weight * drift_loss(guesses, batch.drift, (goal.shape[-2], goal.shape[-1]))
        return loss

    def _stop(self, what: str, held: list[Batch], step: int) -> None:
        """Saves what this process was given for the step. All processes come here together."""
        path = self.run.out / f"stopped-at-{step}-process-{self.accelerator.process_index}.pt"
        torch.save([vars(batch) for batch in held], path)
        self.accelerator.wait_for_everyone()
        names = ", ".join(name for batch in held for name in batch.names)
        raise TrainingStopped(f"the {what} of step {step} is not a number; its clips ({names}) are saved in {path}")


def learning_rate(config: Config, step: int) -> float:
    """Of a step, counted from 0 over all stages: linear rise over the warm-up, then constant or half a cosine."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if not config.cosine:
        return config.learning_rate * rise
    fall = 0.5 * (1 + math.cos(math.pi * step / config.total_steps))
    return config.learning_rate * rise * (0.02 + 0.98 * fall)

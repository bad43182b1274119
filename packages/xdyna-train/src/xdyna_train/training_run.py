"""What a training run holds while it lasts, and how it is kept: checkpoints, sample videos, the model in the end."""

import json
import shutil
import sys
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from xdyna_model.errors import InputError
from xdyna_model.outputs import staged_folder
from xdyna_model.pipeline import XDynaPipeline

from xdyna_train.averages import Averages
from xdyna_train.checkpoint import load_latest, save_checkpoint
from xdyna_train.clips import ExampleSource
from xdyna_train.config import Config, Stage
from xdyna_train.encoding import Encoders
from xdyna_train.fusion import FusionDataset
from xdyna_train.journal import Journal
from xdyna_train.sharing import bring_together, optimizer_parts, part_like, share_out, whole
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


def set_prediction(pipeline: XDynaPipeline, config: Config) -> None:
    """Sets the scheduler's prediction type to the run's, or leaves the model's. Raises InputError, and changes nothing,
    where no picture could be made of that."""
    scheduler = pipeline.scheduler
    prediction = config.prediction or scheduler.config["prediction_type"]
    if prediction == "epsilon" and scheduler.alphas_cumprod[-1] < 1e-6:
        raise InputError(
            "prediction epsilon: at the last of this model's timesteps there is nothing but noise, in which no picture "
            "can be found by it; take v_prediction or sample"
        )
    scheduler.register_to_config(prediction_type=prediction)


class Run:
    """What a run holds while it lasts. The arguments are those of `train.fit`, and where it runs."""

    def __init__(
        self,
        pipeline: XDynaPipeline,
        source: ExampleSource,
        config: Config,
        out: Path,
        seed: int,
        accelerator: Accelerator,
        sampler: Sampler | None,
    ) -> None:
        self.pipeline = pipeline
        self.config = config
        self.out = out
        self.accelerator = accelerator
        self.sampler = None if config.shard else sampler  # all would have to take part
        pipeline.to(accelerator.device)
        self.trainee = Trainee(pipeline)
        if config.gradient_checkpointing:
            for net in (pipeline.unet, pipeline.controlnet, pipeline.controlnet_face):
                net.enable_gradient_checkpointing()
        pipeline.register_to_config(shared_noise=config.shared_noise)
        set_prediction(pipeline, config)
        self.encoders = Encoders(pipeline)
        self.nets = nn.ModuleList([self.trainee, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder])
        self.data = FusionDataset(source, config, seed, self.encoders.preprocess)
        if config.shard:
            share_out(self.trainee)
        self.numbers = json.dumps({"seed": seed, **asdict(config)})
        self.averages = Averages(config.ema_decay)
        self.optimizer_state: dict[str, Any] | None = None
        self.termination: Callable[[], bool] = lambda: False
        self.frozen = ""  # hash of what does not learn in the stage

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
        learning = self.begin(self.config.stages[bisect_left(ends, step)])
        shared = self.trainee.state_dict()
        if shared.keys() != state["weights"].keys():
            raise InputError(f"{self.out}: its model has other weights than this version's; give another folder")
        self.trainee.load_state_dict({name: part_like(x, shared[name]) for name, x in state["weights"].items()})
        if state["frozen"] != frozen_hash(self.nets):
            raise InputError(f"{self.out}: was begun from another model; give the same one to start from")
        averages = [part_like(x, like) for x, like in zip(state["ema"]["shadow_params"], learning, strict=True)]
        self.averages.load_state_dict({**state["ema"], "shadow_params": averages})
        self.optimizer_state = optimizer_parts(state["optimizer"], learning)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return step

    def begin(self, stage: Stage) -> list[nn.Parameter]:
        """Freezes all but a stage's parts; returns what learns."""
        learning = train_only(self.trainee, stage.train)
        self.averages.begin(stage.train, learning)
        return learning

    def keep(self, optimizer: Any, step: int, last: bool) -> None:
        """After a step: a checkpoint where one is due or the step is the stage's last, and a sample video where one is.
        Raises TrainingStopped where frozen weights have changed, InputError where the checkpoint cannot be written."""
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

"""What a training run is: its stages, its numbers, and the presets."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

# What can be trained; see `trainee.py` for the parameters of each.
Part = Literal["backbone", "adapter", "motion", "controlnet", "controlnet_face", "image_projection"]
EVERYTHING: tuple[Part, ...] = ("backbone", "adapter", "motion", "controlnet", "controlnet_face", "image_projection")
Precision = Literal["no", "bf16", "fp16"]
Prediction = Literal["epsilon", "v_prediction", "sample"]  # as diffusers' schedulers name them
Start = Literal["sd15", "nano", "nano-gpu", "tiny"]  # see `starts.py`


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one set of trained parts.

    train: the parts that learn; all others are frozen.
    steps: optimiser steps. Where the data has an end, `epochs` may be given in its place.
    frames: of a clip, without the reference. batch: clips of a step, over all processes.
    human_share: how many of them show people, 0 to 1 (harmonic data fusion, X-Dyna, Section 3.4).
    """

    name: str
    train: tuple[Part, ...]
    frames: int
    batch: int
    human_share: float
    steps: int = 0
    epochs: float = 0.0


@dataclass(frozen=True)
class Config:
    """A training run. The defaults are the paper's where it tells them (Section 4.1).

    height, width: of the pictures, in pixels.
    learning_rate, betas, epsilon, weight_decay: of AdamW. warmup: steps of linear rise. cosine: whether the rate falls
        to 2 % along a half cosine over the run. clip_norm: of the gradients' global norm.
    accumulate: micro-batches a step. ema_decay: of the averaged weights, which are what is kept at the end.
    prediction: what the denoiser learns to predict, None for what the scheduler it starts with says; the scheduler that
        is saved says so, too.
    snr_gamma: Min-SNR weighting (Hang et al. 2023), None for none.
    start_share: share of timesteps that are the last one, where sampling starts. Where frames share one noise, and that
        timestep keeps nothing of the clip, it alone teaches what conditions ask for: at all others, what changes from
        frame to frame is read off the noisy clip, in which it is free of noise.
    late_share: share of the other timesteps drawn from the noisiest two fifths, 0.4 being uniform.
    temporal_weight: weight of the error's change from frame to frame. person_weight, face_weight: what a pixel of the
        person, of the face, counts beside 1.
    drift_weight: weight of what tokens guess of drifts (see `loss.drift_loss`), where the denoiser guesses, as nano
        models do, and the data know, as puppets do that are drawn in training, not those stored before. Not of the
        paper.
    shared_noise: whether the frames of a clip share one noise, which keeps what stands still from flickering.
    drop_condition: share of clips that lose text and image tokens, for classifier-free guidance.
    shard: whether processes share out weights, gradients and the optimiser's state (FSDP), where otherwise each holds
        all of them (DDP). The model itself must still fit each device, as it starts there whole; in bf16 autograd keeps
        a copy of its weights beside. Not in fp16, and without sample videos.
    cuda_graphs: whether a GPU replays its steps from CUDA graphs; for small models. Ignored on a CPU, by several
        processes, and where gradients are accumulated or checkpointed.
    model: where training starts from; see `starts.py`.
    data: digest of the data set, "" for puppets: a run is not resumed with another.
    note: what the preset reached; eyes, mouth, flow and energy as parts of the truth's. On 2026-11-27, after five
        denoising steps.
    """

    stages: tuple[Stage, ...]
    model: Start = "sd15"
    height: int = 896
    width: int = 512
    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    warmup: int = 0
    cosine: bool = False
    clip_norm: float = 1.0
    accumulate: int = 1
    ema_decay: float = 0.9999
    prediction: Prediction | None = None
    snr_gamma: float | None = None
    start_share: float = 0.0
    late_share: float = 0.4
    temporal_weight: float = 0.0
    drift_weight: float = 0.0
    person_weight: float = 0.0
    face_weight: float = 0.0
    shared_noise: bool = False
    drop_condition: float = 0.1
    precision: Precision = "no"
    gradient_checkpointing: bool = False
    shard: bool = False
    cuda_graphs: bool = False
    workers: int = 2
    checkpoint_every: int = 500
    sample_every: int = 1000
    keep_checkpoints: int = 2
    data: str = ""
    note: str = ""

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def lasting(self, steps: int) -> "Config":
        """The same run in so many steps: the stages share them as they share the steps now, at least one each. Where
        there are more stages than steps, the last stages are left out."""
        stages = self.stages[:steps]
        total, taken, ends = sum(stage.steps for stage in stages), 0, [0]
        for index, stage in enumerate(stages):
            taken += stage.steps
            end = round(steps * taken / total)
            # Room for a step of this stage, and for one of each that follows.
            ends.append(min(max(end, ends[-1] + 1), steps - (len(stages) - 1 - index)))
        shares = zip(stages, pairwise(ends), strict=True)
        return replace(self, stages=tuple(replace(stage, steps=end - start) for stage, (start, end) in shares))


_NANO = Config(
    stages=(
        Stage("pairs", EVERYTHING, frames=2, batch=14, human_share=0.85, steps=450),
        Stage("short", EVERYTHING, frames=8, batch=8, human_share=0.6, steps=450),
        Stage("long", EVERYTHING, frames=16, batch=4, human_share=0.6, steps=300),
    ),
    model="nano",
    height=112,
    width=64,
    learning_rate=1.5e-3,
    betas=(0.9, 0.99),
    warmup=60,
    cosine=True,
    ema_decay=0.995,
    snr_gamma=3.0,
    start_share=0.6,
    late_share=0.5,
    temporal_weight=2.0,
    drift_weight=0.04,
    person_weight=2.0,
    face_weight=12.0,
    shared_noise=True,
    drop_condition=0.0,
    precision="bf16",
    cuda_graphs=True,
    workers=1,
    checkpoint_every=100,
    sample_every=400,
    note="69 min of two cores with other work beside; 32 held-back puppets: joints .92, retrieval .92, IoU .012 above "
    "copy, eyes .63, mouth .09, flicker .025, flow .48 to .77, energy .42",
)

_NANO_GPU = replace(_NANO, model="nano-gpu", ema_decay=0.998, workers=15, checkpoint_every=250, sample_every=10_000)

# Presets that go on from a model of another one.
GOES_ON = {"nano-gpu-finish": "nano-gpu"}
PRESETS = {
    "paper": Config(
        stages=(
            Stage("fusion", ("adapter", "motion", "controlnet"), frames=16, batch=32, human_share=0.5, epochs=5),
            Stage("face", ("controlnet_face",), frames=16, batch=32, human_share=1.0, epochs=2),
        ),
        precision="bf16",
        gradient_checkpointing=True,
        note="never run at full size here: needs Stable Diffusion 1.5 and GPUs",
    ),
    "nano": _NANO,
    "nano-gpu": replace(
        _NANO_GPU,
        stages=(
            Stage("pairs", EVERYTHING, frames=2, batch=40, human_share=0.85, steps=700),
            Stage("long", EVERYTHING, frames=16, batch=10, human_share=0.6, steps=2500),
        ),
        warmup=100,
        note="391 s of an H200; 32 held-back puppets: joints .96, retrieval 1.00, IoU .168 above copy, eyes .89, mouth "
        ".83, flicker .017, flow .88 to 1.00, energy .50",
    ),
    "nano-gpu-finish": replace(
        _NANO_GPU,
        stages=(Stage("long", EVERYTHING, frames=16, batch=10, human_share=0.6, steps=5200),),
        warmup=50,
        start_share=0.8,
        late_share=0.4,
        person_weight=1.0,
        face_weight=8.0,
        checkpoint_every=1000,
        note="553 s of an H200; 32 held-back puppets: joints .97, retrieval 1.00, IoU .219 above copy, eyes .96, mouth "
        ".87, flicker .014, flow .83 to .97, energy .63",
    ),
    "smoke": Config(
        stages=(
            Stage("fusion", ("adapter", "motion", "controlnet"), frames=4, batch=2, human_share=0.5, steps=6),
            Stage("face", ("controlnet_face",), frames=4, batch=2, human_share=1.0, steps=4),
        ),
        model="tiny",
        height=64,
        width=64,
        # At 1e-3, what two processes round otherwise than one grows past 1e-5 of the loss in five steps.
        learning_rate=3e-5,
        workers=0,
        checkpoint_every=4,
        sample_every=10,
        note="shows that training runs; learns nothing to look at",
    ),
}

"""Harmonic data fusion: batches in which clips of people and of scenes are mixed (X-Dyna, Section 3.4).

All that is random in a clip of a batch is a function of (seed, stage, step, index): not of the process that draws it,
of how many there are, or of what was drawn before. So a resumed run, and a run on other machines, sees the same. (The
noise is drawn from the clip's seed by the device that trains, and a GPU's is not a CPU's.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset
from xdyna_model.errors import InputError
from xdyna_model.face_map import draw_face
from xdyna_model.pose_map import draw_pose
from xdyna_model.positional_encoding import DRIFTS

from xdyna_train.clips import Example, ExampleSource, Kind
from xdyna_train.config import Config, Stage

# A set in which so many clips in a row cannot be read is broken as a whole.
_MOST_SKIPS = 20
_FIRST_LATE, _NUM_TIMESTEPS = 600, 1000


class Place(NamedTuple):
    """Which clip of which batch."""

    stage: int
    step: int
    clip: int


@dataclass
class Batch:
    """B clips of F frames. Pictures stay uint8, as a clip of full size would otherwise be 388 MB.

    reference: [B, 3, H, W]. frames: [B, F, 3, H, W]. pose: [B, F, 3, H, W]. face: [B, F, 6, H, W], blank where
    nobody is seen. clip_pixels: [B, 3, s, s] float32, the reference as CLIP takes it, all zero where the condition is
    dropped. importance: [B, 1, F, H, W] float16, what a pixel counts in the loss. timesteps, noise_seeds: [B] int64.
    human: [B] bool. names: of the clips. skipped: why clips could not be read, a line each. drift: [B, 2, F, H, W]
    int8, which of `DRIFTS` comes nearest to that of what is seen, and of what is seen through it; None where it is not
    known of every clip.
    """

    reference: Tensor
    frames: Tensor
    pose: Tensor
    face: Tensor
    clip_pixels: Tensor
    importance: Tensor
    timesteps: Tensor
    noise_seeds: Tensor
    human: Tensor
    names: list[str]
    skipped: list[str]
    drift: Tensor | None = None

    def maps(self) -> tuple[Tensor, Tensor]:
        """What the ControlNets take: pose and face in [0, 1], float32."""
        return self.pose.float() / 255, self.face.float() / 255

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The same where a GPU copies from at full speed; a `DataLoader` that pins memory calls this."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {k: change(v) for k, v in values.items() if isinstance(v, Tensor)}
        return Batch(**values)


class FusionDataset(Dataset):
    """Clips by `Place`."""

    def __init__(
        self, source: ExampleSource, config: Config, seed: int, preprocess: Callable[[np.ndarray], Tensor]
    ) -> None:
        """preprocess: the reference, [H, W, 3] uint8, to what the image encoder takes, [3, s, s]."""
        self._source, self._config, self._seed, self._preprocess = source, config, seed, preprocess

    def __getitem__(self, place: Place) -> Batch:
        """A batch of one clip. Raises InputError where one clip after another cannot be read."""
        stage = self._config.stages[place.stage]
        # The 1 keeps it apart from the batch's plan: numpy takes what is missing of a seed for zeros, as clip 0 has.
        rng = np.random.default_rng((self._seed, *place, 1))
        kind, timestep = plan(stage, place, self._seed, self._config.start_share, self._config.late_share)
        skipped: list[str] = []
        while True:
            try:
                example = self._source.draw(kind, stage.frames, rng)
                break
            except InputError as error:
                skipped.append(str(error))
                if len(skipped) == _MOST_SKIPS:
                    raise InputError(f"{_MOST_SKIPS} clips in a row cannot be read, the last: {error}") from error
        return self._batch(example, timestep, rng, skipped)

    def _batch(self, example: Example, timestep: int, rng: np.random.Generator, skipped: list[str]) -> Batch:
        height, width = example.reference.shape[:2]
        pose = np.stack([draw_pose(person, height, width) for person in example.persons])
        faces = [draw_face(*pair) for pair in zip(example.face_frames, example.face_persons, strict=True)]
        local, whole = (np.stack(maps) for maps in zip(*faces, strict=True))  # [F, H, W, 3]
        config, clip_pixels = self._config, self._preprocess(example.reference)
        importance = 1 + config.person_weight * example.masks + config.face_weight * local.any(-1)
        if rng.random() < config.drop_condition:
            clip_pixels = torch.zeros_like(clip_pixels)
        return Batch(
            reference=_channels_first(example.reference[None]),
            frames=_channels_first(example.frames)[None],
            pose=_channels_first(pose)[None],
            face=_channels_first(np.concatenate([local, whole], axis=-1))[None],
            clip_pixels=clip_pixels[None],
            importance=torch.from_numpy(importance.astype(np.float16))[None, None],
            timesteps=torch.tensor([timestep]),
            noise_seeds=torch.tensor([int(rng.integers(2**62))]),
            human=torch.tensor([example.kind == "human"]),
            names=[example.name],
            skipped=skipped,
            drift=None if example.drift is None else nearest_drift(example.drift, example.masks),
        )


def nearest_drift(velocity: np.ndarray, masks: np.ndarray) -> Tensor:
    """`Batch.drift` of one clip. velocity: [2, H, W, 2] as in `Example`; masks: [F, H, W], where the person is, who
    does not drift."""
    height, width = velocity.shape[1:3]
    apart = velocity[..., None, :] * height / max(height, width) - np.array(DRIFTS, np.float32)
    nearest = np.square(apart).sum(-1).argmin(-1).astype(np.int8)  # [2, H, W]
    return torch.from_numpy(np.where(masks, np.int8(0), nearest[:, None]))[None]


def plan(stage: Stage, place: Place, seed: int, start_share: float, late_share: float) -> tuple[Kind, int]:
    """Kind and timestep of a clip. Both are spread evenly over a batch: as many people and scenes, and as many last,
    late and early timesteps, as their shares say."""
    rng = np.random.default_rng((seed, *place[:2]))
    order, shift = rng.permutation(stage.batch), rng.random(2)
    kind: Kind = "human" if (place.clip + shift[0]) / stage.batch < stage.human_share else "scene"
    part = (order[place.clip] + shift[1]) / stage.batch  # uniform in [0, 1)
    if part < start_share:
        return kind, _NUM_TIMESTEPS - 1
    part = (part - start_share) / (1 - start_share)
    if part < late_share:
        return kind, int(_FIRST_LATE + part / late_share * (_NUM_TIMESTEPS - _FIRST_LATE))
    return kind, int((part - late_share) / (1 - late_share) * _FIRST_LATE)


def places(stage: int, steps: range, batch: int, rank: int, world: int, accumulate: int) -> Iterator[list[Place]]:
    """The micro-batches of one process, in order: `accumulate` a step."""
    size = batch // (world * accumulate)
    for step in steps:
        for micro in range(accumulate):
            first = (micro * world + rank) * size
            yield [Place(stage, step, index) for index in range(first, first + size)]


def collate(clips: list[Batch]) -> Batch:
    """Several batches as one."""
    values = {f.name: [getattr(clip, f.name) for clip in clips] for f in fields(Batch)}
    drifts = values.pop("drift")
    joined: dict[str, Any] = {
        k: torch.cat(v) if isinstance(v[0], Tensor) else list(chain(*v)) for k, v in values.items()
    }
    return Batch(**joined, drift=None if any(drift is None for drift in drifts) else torch.cat(drifts))


def _channels_first(pictures: np.ndarray) -> Tensor:
    """[N, H, W, C] -> [N, C, H, W]."""
    return torch.from_numpy(rearrange(pictures, "n h w c -> n c h w").copy())

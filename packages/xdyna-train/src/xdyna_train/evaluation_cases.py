"""Held-back cases for evaluation in puppet world: what a model is given, and what the world itself draws."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from xdyna_model.conditions import Conditions
from xdyna_model.detectors import Person
from xdyna_model.face_map import draw_face
from xdyna_model.pose_map import draw_pose

from xdyna_train.metrics.colour import Parts, draw_parts
from xdyna_train.metrics.expression import Heads, expressions
from xdyna_train.metrics.intervals import correlation
from xdyna_train.metrics.motion import flowing
from xdyna_train.metrics.silhouette import figure_colours
from xdyna_train.puppets import KINDS, Identity, Motion, Pose, PuppetFrame, Scene, render_clip, render_frame

FRAMES = 16
# First words of every seed. Training seeds its draws with (seed, stage, step, clip): it would need a seed of
# this size to come by these.
ENTROPY = 0xE7A1_0A7E_D0C5_51DE_9B1F_24C6_83AD_7752
CASES, READ_OUT = 0, 1  # the word after: which of two worlds that share nobody
# The kinds that have a figure of their own come four times in five; the others take turns in between.
MEASURED = ("waterfall", "rain", "clouds", "room")
OTHERS = tuple(kind for kind in KINDS if kind not in MEASURED)
# As in training: the reference shows a moment at most so many frames away, or the figure at rest.
REFERENCE_REACH = 20.0
STANDING_SHARE = 0.25
_CANDIDATES = 32  # of clips for the swapped face maps, of which the least like the driving one is taken


@dataclass(frozen=True)
class OtherFace(Motion):
    """A motion with the expression of another: the same body and head, so that only the expression is swapped."""

    face: Motion

    @classmethod
    def of(cls, motion: Motion, face: Motion) -> "OtherFace":
        return cls(**vars(motion), face=face)

    def at(self, t: float) -> Pose:
        return replace(super().at(t), expression=self.face.at(t).expression)


@dataclass(frozen=True, eq=False)
class Case:
    """One identity before one scene, and a motion that someone else of its build shows.

    seed: of the model's noise, below 2**63. scene: its kind, flow and window are known.
    reference: [H, W, 3] uint8, the identity in another pose, the scene one frame before frame 0.
    conditions: pose and face maps of the other one; swapped: the same with the expressions of another clip.
    truth: [F, H, W, 3] uint8, the identity with this motion; masks: [F, H, W] bool, where it is; persons: its points.
    swapped_truth: [F, H, W, 3] uint8, the identity with the expressions of `swapped`.
    stranger: [F, H, W, 3] uint8, a third one in its place.
    background: [F + 1, H, W, 3] uint8, the scene alone, from the reference's moment on.
    colours: [K, 3] float32 in [0, 1], all that the identity's surfaces show. parts: where each of them is seen.
    heads: where the head is, to find its mouth and eyes. flowing: [F, H, W] bool, of `metrics.motion`.
    expression, swapped_expression: [F, 2], how far mouth and eyes of the two clips are open.
    """

    seed: int
    scene: Scene
    reference: np.ndarray
    conditions: Conditions
    swapped: Conditions
    truth: np.ndarray
    masks: np.ndarray
    persons: tuple[Person, ...]
    swapped_truth: np.ndarray
    stranger: np.ndarray
    background: np.ndarray
    colours: np.ndarray
    parts: Parts
    heads: Heads
    flowing: np.ndarray
    expression: np.ndarray
    swapped_expression: np.ndarray


def draw_cases(count: int, seed: int, height: int, width: int, frames: int = FRAMES) -> list[Case]:
    """`count` held-back cases. A case depends on seed and its number alone: more cases begin with the same ones."""
    return [draw_case(index, seed, height, width, frames) for index in range(count)]


def scene_kind(index: int) -> str:
    """The kind of scene of a case."""
    turn, place = divmod(index, len(MEASURED) + 1)
    return MEASURED[place] if place < len(MEASURED) else OTHERS[turn % len(OTHERS)]


def draw_case(index: int, seed: int, height: int, width: int, frames: int = FRAMES) -> Case:
    """The case of that number, all of it drawn from (seed, index)."""
    sequence = np.random.SeedSequence((ENTROPY, CASES, seed, index))
    rng = np.random.default_rng(sequence)
    scene = Scene.sample(scene_kind(index), rng)
    identity, motion = Identity.sample(rng), Motion.sample(rng)
    driver, stranger = (Identity.sample(rng).with_build_of(identity) for _ in range(2))
    room = Scene.sample("room", rng)
    start = float(rng.uniform(0, 40))
    times = [start + k for k in range(1, frames + 1)]
    shown = Motion.standing() if rng.random() < STANDING_SHARE else motion
    moment = start + float(rng.uniform(-REFERENCE_REACH, REFERENCE_REACH))
    swapped = OtherFace.of(motion, _unlike(motion, times, rng))
    truth = render_clip(scene, identity, motion, times, height, width)
    driving = render_clip(room, driver, motion, times, height, width)
    swapped_driving = render_clip(room, driver, swapped, times, height, width)
    background = render_clip(scene, None, None, [start, *times], height, width)
    conditions = draw_conditions(driving)
    return Case(
        seed=int(sequence.generate_state(1, np.uint64)[0] >> 1),
        scene=scene,
        reference=render_frame(scene, identity, shown, moment, height, width, scene_t=start).rgb,
        conditions=conditions,
        swapped=replace(draw_conditions(swapped_driving), pose=conditions.pose),
        truth=pictures(truth),
        masks=np.stack([frame.mask for frame in truth]),
        persons=tuple(frame.person for frame in truth if frame.person is not None),
        swapped_truth=pictures(render_clip(scene, identity, swapped, times, height, width)),
        stranger=pictures(render_clip(scene, stranger, motion, times, height, width)),
        background=pictures(background),
        colours=figure_colours(identity),
        parts=draw_parts(scene, identity, motion, times, height, width),
        heads=Heads.of(identity, motion, times, height, width),
        flowing=flowing(pictures(truth), pictures(background[1:])),
        expression=expressions(motion, times),
        swapped_expression=expressions(swapped, times),
    )


def read_out_rng(seed: int) -> np.random.Generator:
    """For the people on whom the expression's read-out is fitted: none of them is in a case."""
    return np.random.default_rng(np.random.SeedSequence((ENTROPY, READ_OUT, seed)))


def draw_conditions(frames: Sequence[PuppetFrame]) -> Conditions:
    """The maps of a driving clip, made from what is true of it."""
    poses = [draw_pose(frame.person, *frame.rgb.shape[:2]) for frame in frames]
    faces = [draw_face(frame.rgb, frame.person) for frame in frames]
    return Conditions(np.stack(poses), *(np.stack(part) for part in zip(*faces, strict=True)))


def pictures(frames: Sequence[PuppetFrame]) -> np.ndarray:
    """[F, H, W, 3] uint8."""
    return np.stack([frame.rgb for frame in frames])


def _unlike(motion: Motion, times: Sequence[float], rng: np.random.Generator) -> Motion:
    """A motion whose mouth and eyes go another way at these times: a result that follows it must not seem to follow
    `motion` by chance."""
    own = expressions(motion, times)
    candidates = [Motion.sample(rng) for _ in range(_CANDIDATES)]

    def likeness(other: Motion) -> float:
        shown = expressions(other, times)
        return max(abs(correlation(own[:, k], shown[:, k])) for k in range(own.shape[1]))

    return min(candidates, key=likeness)

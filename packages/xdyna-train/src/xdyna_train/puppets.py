"""The puppet world: short drawn videos of a figure that dances before a scene, with the truth of every frame.

    rng = np.random.default_rng(0)
    scene, identity, motion = Scene.sample("waterfall", rng), Identity.sample(rng), Motion.sample(rng)
    frames = render_clip(scene, identity, motion, times=range(8), height=80, width=48)

Everything is drawn in units of the picture's height, so any size shows the same world; the same seed gives the same
bytes. One motion drives any identity, which is what reenactment needs as truth.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from xdyna_model.detectors import Person

from xdyna_train.puppet_figure import draw_figure
from xdyna_train.puppet_identity import Identity
from xdyna_train.puppet_motion import Expression, Motion, Pose
from xdyna_train.puppet_scenes import DRIFTING, KINDS, Scene
from xdyna_train.puppet_skeleton import Skeleton, pose_skeleton
from xdyna_train.puppet_strokes import Strokes

__all__ = [
    "DRIFTING",
    "KINDS",
    "Expression",
    "Identity",
    "Motion",
    "Pose",
    "PuppetFrame",
    "Scene",
    "render_clip",
    "render_face",
    "render_frame",
    "sample_clip",
]


@dataclass(frozen=True)
class PuppetFrame:
    """A frame and what is true of it.

    rgb: [H, W, 3] uint8. mask: [H, W] bool, the figure without its shadow (all False without a figure).
    person: every point with confidence 1, also where it lies outside the frame or is hidden; None without a figure.
    face_box: left, top, right, bottom in pixels around the face, None without a figure.
    expression: what the face does, None without a figure. kind: the scene's.
    """

    rgb: np.ndarray
    mask: np.ndarray
    person: Person | None
    face_box: tuple[float, float, float, float] | None
    expression: Expression | None
    kind: str


def render_frame(
    scene: Scene,
    identity: Identity | None,
    motion: Motion | None,
    t: float,
    height: int,
    width: int,
    scene_t: float | None = None,
) -> PuppetFrame:
    """Draws one frame at time t (frames, any real number), height x width pixels.

    identity and motion None: the scene alone. scene_t: the scene's own time where it is not t, so that a reference
    picture may show another pose before the same water. Raises ValueError where only one of the two is None or a
    side is below 16 pixels.
    """
    if (identity is None) != (motion is None):
        raise ValueError("identity and motion go together: give both, or None for both")
    if min(height, width) < 16:
        raise ValueError(f"a picture of {height} x {width} is too small to draw in; 16 pixels a side at least")
    picture = scene.render(t if scene_t is None else scene_t, height, width)
    if identity is None or motion is None:
        return PuppetFrame(np.array(picture), np.zeros((height, width), bool), None, None, None, scene.kind)
    pose = motion.at(t)
    skeleton = pose_skeleton(identity, pose)
    _shadow(skeleton).layer(height, width).onto(picture)
    figure = draw_figure(identity, skeleton, pose).layer(height, width)
    figure.onto(picture)
    cover = Image.new("L", (width, height))
    cover.paste(figure.image.getchannel("A"), figure.corner)
    mask = np.asarray(cover) > 127
    box = _face_box(skeleton, height, width)
    return PuppetFrame(np.array(picture), mask, _person(skeleton, height, width), box, pose.expression, scene.kind)


def render_face(
    scene: Scene, identity: Identity, motion: Motion, t: float, height: int, width: int
) -> tuple[np.ndarray, Person]:
    """What of `render_frame` a face map is cut from: no legs and no shadow, for the map ends at the hips.

    Returns [H, W, 3] uint8 RGB, and the figure's points as in `PuppetFrame`.
    """
    picture = scene.render(t, height, width)
    pose = motion.at(t)
    skeleton = pose_skeleton(identity, pose)
    draw_figure(identity, skeleton, pose, legs=False).layer(height, width).onto(picture)
    return np.array(picture), _person(skeleton, height, width)


def render_clip(
    scene: Scene, identity: Identity | None, motion: Motion | None, times: Iterable[float], height: int, width: int
) -> list[PuppetFrame]:
    """`render_frame` at each of the times; what of the scene stands still is drawn once."""
    return [render_frame(scene, identity, motion, t, height, width) for t in times]


def sample_clip(
    rng: np.random.Generator, num_frames: int, height: int, width: int, kind: str | None = None, people: bool = True
) -> list[PuppetFrame]:
    """A clip of anybody dancing anywhere, all drawn from rng. kind: one of `KINDS`, any where None."""
    scene = Scene.sample(kind or KINDS[rng.integers(len(KINDS))], rng)
    identity, motion = (Identity.sample(rng), Motion.sample(rng)) if people else (None, None)
    start = float(rng.uniform(0, 40))
    return render_clip(scene, identity, motion, [start + k for k in range(num_frames)], height, width)


def _pixels(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """[..., 2] heights from the middle to [..., 3] pixels with confidence 1, float32."""
    found = np.concatenate([points * height + (width / 2, 0.0), np.ones((*points.shape[:-1], 1))], -1)
    return found.astype(np.float32)


def _person(skeleton: Skeleton, height: int, width: int) -> Person:
    parts = (skeleton.body, skeleton.hands, skeleton.face)
    body, hands, face = (_pixels(part, height, width) for part in parts)
    return Person(body, hands, face)


def _face_box(skeleton: Skeleton, height: int, width: int) -> tuple[float, float, float, float]:
    margin = 0.12 * skeleton.head_radius
    corners = np.stack([skeleton.face.min(0) - margin, skeleton.face.max(0) + margin])
    (left, top, _), (right, bottom, _) = _pixels(corners, height, width).tolist()
    return left, top, right, bottom


def _shadow(skeleton: Skeleton) -> Strokes:
    strokes = Strokes()
    left, right = skeleton.body[10], skeleton.body[13]
    middle = ((left[0] + right[0]) / 2, 0.945)
    for grow in (1.0, 0.75):
        half = abs(right[0] - left[0]) / 2 + 0.05
        strokes.ellipse(middle, grow * half, grow * 0.022, (24, 16, 40, 40 if grow == 1.0 else 64))
    return strokes

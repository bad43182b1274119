"""What the mouth and the eyes do in a generated frame, read from its pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange

from xdyna_train.puppet_face import turned
from xdyna_train.puppet_identity import Identity
from xdyna_train.puppet_motion import Motion
from xdyna_train.puppet_skeleton import pose_skeleton
from xdyna_train.puppets import Scene, render_frame

READ = ("mouth", "eyes")


def _grid(left: float, right: float, top: float, bottom: float, step: float = 0.1) -> np.ndarray:
    across, down = np.arange(left, right + step / 2, step), np.arange(top, bottom + step / 2, step)
    return np.stack(np.meshgrid(across, down), -1).reshape(-1, 2)


# Places around mouth and eyes in head radii, (right, down) from the head's middle, as `puppet_face` has them.
_PATCHES = {
    "mouth": _grid(-0.4, 0.4, 0.4, 1.0),
    "eyes": np.concatenate([_grid(-0.7, -0.1, -0.3, 0.3), _grid(0.1, 0.7, -0.3, 0.3)]),
}
_CHEEKS = np.concatenate([_grid(-0.6, -0.4, 0.25, 0.45), _grid(0.4, 0.6, 0.25, 0.45)])
_RIDGE = 3.0  # the read-out's penalty on its weights, against samples counted one by one
_READ_OUT_PEOPLE, _READ_OUT_MOMENTS = 160, 4


@dataclass(frozen=True, eq=False)
class Heads:
    """Where a head is. middle: [F, 2] pixels; axes: [F, 2, 2] pixels, one head radius along its own right and down;
    turn: [F] radians to its left."""

    middle: np.ndarray
    axes: np.ndarray
    turn: np.ndarray

    @classmethod
    def of(cls, identity: Identity, motion: Motion, times: Sequence[float], height: int, width: int) -> "Heads":
        poses = [motion.at(t) for t in times]
        skeletons = [pose_skeleton(identity, pose) for pose in poses]
        middle = np.stack([skeleton.head for skeleton in skeletons]) * height + (width / 2, 0.0)
        axes = np.stack([skeleton.axes for skeleton in skeletons]) * height
        return cls(middle, axes, np.array([pose.turn for pose in poses]))

    def places(self, points: np.ndarray) -> np.ndarray:
        """points: [N, 2] in head radii on the face. Returns [F, N, 2] pixels."""
        on_face = np.stack([turned(points, turn) for turn in self.turn])
        return self.middle[:, None] + on_face @ self.axes


@dataclass(frozen=True, eq=False)
class ReadOut:
    """Linear read-outs of mouth and eyes. weights: name to [C]; bias is left out, as correlation ignores it."""

    weights: dict[str, np.ndarray]

    def __call__(self, frames: np.ndarray, heads: Heads) -> np.ndarray:
        """frames: [F, H, W, 3] float32 in [0, 1]. Returns [F, 2], how far mouth and eyes are open, to a constant."""
        return np.stack([features(frames, heads, name) @ self.weights[name] for name in READ], -1)


def features(frames: np.ndarray, heads: Heads, name: str) -> np.ndarray:
    """The pixels around mouth or eyes less the cheeks' colour, and their distance from it. Returns [F, C]."""
    skin = np.median(_sample(frames, heads.places(_CHEEKS)), 1, keepdims=True)
    contrast = _sample(frames, heads.places(_PATCHES[name])) - skin  # [F, N, 3]
    distance = np.linalg.norm(contrast, axis=-1, keepdims=True)
    return rearrange(np.concatenate([contrast, distance], -1), "f n c -> f (n c)")


def fit_read_out(height: int, width: int, rng: np.random.Generator) -> ReadOut:
    """Ridge regression of the true parameters on the pixels of people drawn from rng, in one room."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in READ}
    targets, scene = [], Scene.sample("room", rng)
    for _ in range(_READ_OUT_PEOPLE):
        identity, motion = Identity.sample(rng), Motion.sample(rng)
        times = rng.uniform(0, 60, _READ_OUT_MOMENTS).tolist()
        pictures = [render_frame(scene, identity, motion, t, height, width).rgb for t in times]
        frames = np.stack(pictures).astype(np.float32) / 255
        heads = Heads.of(identity, motion, times, height, width)
        targets.append(expressions(motion, times))
        for name in READ:
            rows[name].append(features(frames, heads, name))
    target = np.concatenate(targets)  # [S, 2]
    return ReadOut({name: _ridge(np.concatenate(rows[name]), target[:, k]) for k, name in enumerate(READ)})


def expressions(motion: Motion, times: Sequence[float]) -> np.ndarray:
    """[F, 2], how far mouth and eyes are open, 0 to 1."""
    faces = [motion.at(t).expression for t in times]
    return np.array([(face.mouth, face.eyes) for face in faces])


def _ridge(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(0)
    return np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(rows.shape[1]), centred.T @ (target - target.mean()))


def _sample(frames: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Bilinear. frames: [F, H, W, 3]; places: [F, N, 2] pixels, whose centres are at halves. Returns [F, N, 3]."""
    last = np.array(frames.shape[2:0:-1]) - 1
    at = np.clip(places - 0.5, 0, last)
    low = np.minimum(np.floor(at).astype(int), last - 1)
    right, down = (at - low)[..., :1], (at - low)[..., 1:]
    x, y = low[..., 0], low[..., 1]
    frame = np.arange(len(frames))[:, None]
    top = frames[frame, y, x] * (1 - right) + frames[frame, y, x + 1] * right
    bottom = frames[frame, y + 1, x] * (1 - right) + frames[frame, y + 1, x + 1] * right
    return top * (1 - down) + bottom * down

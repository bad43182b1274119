"""Examples from the puppet world, drawn when they are asked for: nothing is stored, and no two are alike."""

from collections.abc import Sequence

import numpy as np
from xdyna_model.errors import InputError

from xdyna_train.clips import Example, Kind
from xdyna_train.puppets import KINDS, Identity, Motion, Scene, render_clip, render_face, render_frame

# The reference shows a moment at most so many frames away, about two beats of a dance, or the figure at rest.
_REFERENCE_REACH = 20.0
_STANDING_SHARE = 0.25


class PuppetSource:
    """An `ExampleSource` of puppets (`"human"`) and of scenes without them (`"scene"`).

    The reference shows the scene one frame before frame 0 and the figure in another pose, so the water of the frames
    goes on from the water of the reference. The face frames show someone else with the same build, pose and
    expression, in a room, as far as a face map shows of it.
    """

    def __init__(self, height: int, width: int, scene_kinds: Sequence[str] = KINDS) -> None:
        """height, width: of the pictures, in pixels. scene_kinds: some of `KINDS`, each drawn as often.

        Raises InputError for pictures below 16 pixels a side, for no kind, or for one that does not exist.
        """
        if min(height, width) < 16:
            raise InputError(f"puppets of {height} x {width} pixels are too small to see: 16 a side at least")
        unknown = [kind for kind in scene_kinds if kind not in KINDS]
        if unknown or not scene_kinds:
            raise InputError(f"unknown scene kinds {unknown}: choose from {', '.join(KINDS)}")
        self._size = (height, width)
        self._scene_kinds = tuple(scene_kinds)

    def draw(self, kind: Kind, num_frames: int, rng: np.random.Generator) -> Example:
        """A new clip, all of it drawn from rng. Raises InputError for num_frames below 1 or an unknown kind."""
        if num_frames < 1 or kind not in ("human", "scene"):
            raise InputError(f"no example of {num_frames} frames and kind {kind!r}: 1 or more, 'human' or 'scene'")
        scene = Scene.sample(self._scene_kinds[rng.integers(len(self._scene_kinds))], rng)
        start = float(rng.uniform(0, 40))
        return (
            self._dancing(scene, start, num_frames, rng) if kind == "human" else self._empty(scene, start, num_frames)
        )

    def _dancing(self, scene: Scene, start: float, num_frames: int, rng: np.random.Generator) -> Example:
        identity, motion = Identity.sample(rng), Motion.sample(rng)
        other, room = Identity.sample(rng).with_build_of(identity), Scene.sample("room", rng)
        shown = Motion.standing() if rng.random() < _STANDING_SHARE else motion
        moment = start + float(rng.uniform(-_REFERENCE_REACH, _REFERENCE_REACH))
        reference = render_frame(scene, identity, shown, moment, *self._size, scene_t=start)
        times = [start + k for k in range(1, num_frames + 1)]
        frames = render_clip(scene, identity, motion, times, *self._size)
        faces = [render_face(room, other, motion, t, *self._size) for t in times]
        return Example(
            name=f"{scene.kind}-{scene.seed}",
            kind="human",
            reference=reference.rgb,
            frames=np.stack([frame.rgb for frame in frames]),
            persons=tuple(frame.person for frame in frames),
            masks=np.stack([frame.mask for frame in frames]),
            face_frames=np.stack([rgb for rgb, _ in faces]),
            face_persons=tuple(person for _, person in faces),
            drift=scene.drift(*self._size),
        )

    def _empty(self, scene: Scene, start: float, num_frames: int) -> Example:
        reference, *frames = render_clip(scene, None, None, [start + k for k in range(num_frames + 1)], *self._size)
        nobody = (None,) * num_frames
        return Example(
            name=f"{scene.kind}-{scene.seed}",
            kind="scene",
            reference=reference.rgb,
            frames=np.stack([frame.rgb for frame in frames]),
            persons=nobody,
            masks=np.stack([frame.mask for frame in frames]),
            face_frames=np.zeros((num_frames, *self._size, 3), np.uint8),
            face_persons=nobody,
            drift=scene.drift(*self._size),
        )

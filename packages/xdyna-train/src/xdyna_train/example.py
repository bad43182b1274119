"""Draws the built-in example: `python -m xdyna_train.example OUT_DIR`.

One puppet stands before a waterfall (the reference), another dances in a room (the driving video), and the pose and
face videos are made from what is true of the dancer, so that the example runs without a detector.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from xdyna_model.face_map import draw_face
from xdyna_model.pose_map import draw_pose
from xdyna_model.video import write_video

from xdyna_train.puppets import Identity, Motion, PuppetFrame, Scene, render_clip, render_frame

HEIGHT, WIDTH = 448, 256
NUM_FRAMES = 32
FPS = 8
# Constant quality: the conditions carry their meaning in colours and thin lines, so little may be lost.
CRF = 12
VIDEOS = ("driving", "pose", "face_local", "face_global")

_REFERENCE_SEED, _DANCER_SEED, _DANCE_SEED, _ROOM_SEED = 16, 14, 99, 3


def reference() -> PuppetFrame:
    """The picture to animate: [448, 256, 3] uint8 RGB with its truth."""
    scene = Scene.sample("waterfall", np.random.default_rng(_REFERENCE_SEED))
    return render_frame(scene, _reference_identity(), Motion.standing(), 0.0, HEIGHT, WIDTH)


def driving() -> list[PuppetFrame]:
    """The dance that moves it: 32 frames of [448, 256, 3] uint8 RGB with their truth."""
    scene = Scene.sample("room", np.random.default_rng(_ROOM_SEED))
    motion = replace(Motion.sample(np.random.default_rng(_DANCE_SEED)), place=0.0)
    return render_clip(scene, _dancer(), motion, range(NUM_FRAMES), HEIGHT, WIDTH)


def conditions(frames: Sequence[PuppetFrame]) -> dict[str, np.ndarray]:
    """The videos of a clip by the names of `VIDEOS`, each [F, H, W, 3] uint8 RGB."""
    poses = [draw_pose(frame.person, *frame.rgb.shape[:2]) for frame in frames]
    faces = [draw_face(frame.rgb, frame.person) for frame in frames]
    return {
        "driving": np.stack([frame.rgb for frame in frames]),
        "pose": np.stack(poses),
        "face_local": np.stack([local for local, _ in faces]),
        "face_global": np.stack([whole for _, whole in faces]),
    }


def build(folder: Path) -> list[Path]:
    """Writes reference.png and the MP4 files of `VIDEOS` into folder, which is made if it is missing.

    Returns the paths written. Raises InputError or OSError where they cannot be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "reference.png"]
    Image.fromarray(reference().rgb).save(paths[0], optimize=True)
    for name, frames in conditions(driving()).items():
        paths.append(folder / f"{name}.mp4")
        write_video(paths[-1], frames, FPS, CRF)
    return paths


def _reference_identity() -> Identity:
    return Identity.sample(np.random.default_rng(_REFERENCE_SEED))


def _dancer() -> Identity:
    # Another person of the same build: the skeleton is drawn over the reference as it is, without fitting.
    return Identity.sample(np.random.default_rng(_DANCER_SEED)).with_build_of(_reference_identity())


def main() -> None:
    """Writes the example into the folder that is the only argument."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m xdyna_train.example OUT_DIR")
    for path in build(Path(sys.argv[1])):
        print(f"{path} {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

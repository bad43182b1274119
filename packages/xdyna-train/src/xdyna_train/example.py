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
from xdyna_model.driving import MAPS
from xdyna_model.face_map import draw_face
from xdyna_model.outputs import staged
from xdyna_model.pose_map import draw_pose
from xdyna_model.refusals import refusing
from xdyna_model.video import encode_video

from xdyna_train.puppets import Identity, Motion, PuppetFrame, Scene, render_clip, render_frame

HEIGHT, WIDTH = 448, 256
# The maps are drawn at the nano model's own size: scaled down to it, their thin lines would fade.
MAP_HEIGHT, MAP_WIDTH = 112, 64
NUM_FRAMES = 32
FPS = 8
# Constant quality. The maps carry their meaning in colours and lines a pixel wide, so nothing may be lost of them.
CRF, MAP_CRF = 12, 0

_REFERENCE_SEED, _DANCER_SEED, _DANCE_SEED, _ROOM_SEED = 16, 14, 99, 3


def reference() -> PuppetFrame:
    """The picture to animate: [448, 256, 3] uint8 RGB with its truth."""
    scene = Scene.sample("waterfall", np.random.default_rng(_REFERENCE_SEED))
    return render_frame(scene, _reference_identity(), Motion.standing(), 0.0, HEIGHT, WIDTH)


def driving(height: int = HEIGHT, width: int = WIDTH) -> list[PuppetFrame]:
    """The dance that moves it: 32 frames of [height, width, 3] uint8 RGB with their truth."""
    scene = Scene.sample("room", np.random.default_rng(_ROOM_SEED))
    motion = replace(Motion.sample(np.random.default_rng(_DANCE_SEED)), place=0.0)
    return render_clip(scene, _dancer(), motion, range(NUM_FRAMES), height, width)


def conditions(frames: Sequence[PuppetFrame]) -> dict[str, np.ndarray]:
    """What is seen of the dancer, by the names of `MAPS`, each [F, H, W, 3] uint8 RGB."""
    poses = [draw_pose(frame.person, *frame.rgb.shape[:2]) for frame in frames]
    faces = [draw_face(frame.rgb, frame.person) for frame in frames]
    return {
        "pose": np.stack(poses),
        "face_local": np.stack([local for local, _ in faces]),
        "face_global": np.stack([whole for _, whole in faces]),
    }


def build(folder: Path) -> list[Path]:
    """Writes reference.png, driving.mp4 and an MP4 file of each of `MAPS` into folder, made if it is missing.

    Returns the paths written. Raises InputError or OSError where they cannot be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "reference.png"]
    Image.fromarray(reference().rgb).save(paths[0], optimize=True)
    with staged(*(folder / f"{name}.mp4" for name in ("driving", *MAPS))) as drafts:
        encode_video(drafts[0], (frame.rgb for frame in driving()), FPS, CRF)
        for draft, frames in zip(drafts[1:], conditions(driving(MAP_HEIGHT, MAP_WIDTH)).values(), strict=True):
            encode_video(draft, frames, FPS, MAP_CRF, pix_fmt="yuv444p")
    paths += [folder / f"{name}.mp4" for name in ("driving", *MAPS)]
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
    with refusing("example"):
        paths = build(Path(sys.argv[1]))
    for path in paths:
        print(f"{path} {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()

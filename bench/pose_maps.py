"""How near our pose maps come to published ones: `uv run bench/pose_maps.py --driving V.mp4 --published P.mp4`.

The joints of the published skeletons are read back from their pictures (`published_joints.py`), without a look at
what our detector says. MediaPipe runs over all driving frames in order, as it does for a user. A joint counts as
right within 0.2 torso lengths (PCK@0.2 torso) of the published one; a joint that our detector leaves out counts as
wrong; a published joint that cannot be read back counts neither way, and is told.
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from output_file import output_file
from PIL import Image
from published_joints import read_joints
from xdyna_model.detectors import BODY, Detector, Person
from xdyna_model.detectors.mediapipe import MediapipeDetector
from xdyna_model.face_map import draw_face, has_face
from xdyna_model.pose_map import MIN_CONFIDENCE, draw_pose

NEAR = 0.2
REQUIRED = 0.95
_NECK, _HIPS = BODY.index("neck"), [BODY.index("right_hip"), BODY.index("left_hip")]


@dataclass(frozen=True)
class Measured:
    """published: [F, 14, 2] pixels, NaN where not read back; ours: [F, 14, 3] x, y, confidence; face: [F] bool;
    hands: [F, 2] bool; seconds: [F] for all frames of the video."""

    published: np.ndarray
    ours: np.ndarray
    face: np.ndarray
    hands: np.ndarray
    seconds: np.ndarray


def frames_of(path: Path) -> list[np.ndarray]:
    """All frames, [H, W, 3] uint8 RGB each."""
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def detect(frames: list[np.ndarray], detector: Detector) -> tuple[list[Person | None], np.ndarray]:
    """The persons, and the seconds [F] that each took."""
    people, seconds = [], []
    for frame in frames:
        start = time.perf_counter()
        people.append(detector(frame))
        seconds.append(time.perf_counter() - start)
    return people, np.array(seconds)


def torso_lengths(published: np.ndarray) -> np.ndarray:
    """published [F, 14, 2] -> [F]: neck to middle of the hips. Where one of them is hidden, the length of the
    nearest frame that shows both."""
    lengths = np.linalg.norm(published[:, _NECK] - published[:, _HIPS].mean(axis=1), axis=1)
    known = np.flatnonzero(np.isfinite(lengths))
    if len(known) == 0:
        sys.exit("no frame of the published skeleton shows neck and hips")
    nearest = known[np.abs(np.arange(len(lengths))[:, None] - known[None]).argmin(axis=1)]
    return lengths[nearest]


def figures(measured: Measured, height: int, width: int) -> dict:
    """PCK and errors over the published joints that were read back and lie in the picture."""
    published, ours = measured.published, measured.ours
    readable = np.isfinite(published[..., 0])
    inside = readable & (published >= 0).all(axis=2) & (published < [width, height]).all(axis=2)
    error = np.linalg.norm(published - ours[..., :2], axis=2)  # [F, 14]
    drawn = ours[..., 2] >= MIN_CONFIDENCE
    right = drawn & (error <= NEAR * torso_lengths(published)[:, None])

    def over(joints: np.ndarray) -> dict:
        shown = inside & drawn & joints
        return {
            "pck": round(float(right[inside & joints].mean()), 4),
            "median_error_px": round(float(np.median(error[shown])), 2),
            "joints": int((inside & joints).sum()),
            "left_out_by_us": int((inside & joints & ~drawn).sum()),
            "not_read_back": int((~readable & joints).sum()),
        }

    every = np.ones_like(inside)
    one = np.eye(len(BODY), dtype=bool)
    return {
        "frames": len(published),
        "frames_with_a_joint_not_read_back": int(np.sum(~readable.all(axis=1))),
        "nobody_seen": int((ours[..., 2].max(axis=1) == 0).sum()),
        "face_found": round(float(measured.face.mean()), 4),
        "hands_found": round(float(measured.hands.mean()), 4),
        "ms_per_frame": round(1000 * float(measured.seconds.mean()), 1),
        "all": over(every)
        | {"pck_if_all_not_read_back_were_wrong": round(float(right[inside].sum() / (inside | ~readable).sum()), 4)},
        "per_joint": {name: over(every & one[i]) for i, name in enumerate(BODY)},
    }


def measure(driving: Path, published: Path, num_frames: int | None, sheet: list[np.ndarray]) -> dict:
    """Runs one pair; adds rows of [driving, published, ours, face local, face global] to `sheet`."""
    frames, skeletons = frames_of(driving), frames_of(published)
    if len(frames) != len(skeletons) or frames[0].shape != skeletons[0].shape:
        sys.exit(f"{driving} and {published} differ in frames or size")
    with MediapipeDetector() as detector:
        people, seconds = detect(frames, detector)
    chosen = np.arange(len(frames))
    if num_frames is not None:
        chosen = np.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().astype(int)
    some = [people[i] for i in chosen]
    nobody = np.zeros((len(BODY), 3))
    measured = Measured(
        published=np.stack([read_joints(skeletons[i]) for i in chosen]),
        ours=np.stack([nobody if person is None else person.body for person in some]),
        face=np.array([has_face(person) for person in some]),
        hands=np.array([[False] * 2 if person is None else person.hands[:, 0, 2] > 0 for person in some]),
        seconds=seconds,
    )
    height, width, _ = frames[0].shape
    for i in chosen[np.linspace(0, len(chosen) - 1, min(4, len(chosen))).astype(int)]:
        ours = draw_pose(people[i], height, width)
        sheet.append(np.hstack([frames[i], skeletons[i], ours, *draw_face(frames[i], people[i])]))
    return {"driving": driving.name, "published": published.name, **figures(measured, height, width)}


def show(result: dict) -> None:
    """Prints one pair's figures as a table."""
    total = result["all"]
    print(f"\n{result['driving']} against {result['published']}: {result['frames']} frames")
    print(f"  PCK@{NEAR} torso {total['pck']:.4f}, {total['joints']} joints, median {total['median_error_px']} px")
    print(
        f"  {total['not_read_back']} published joints in {result['frames_with_a_joint_not_read_back']} frames "
        f"could not be read back (PCK if all were wrong {total['pck_if_all_not_read_back_were_wrong']:.4f})"
    )
    print(
        f"  face found {result['face_found']:.3f}, hands found {result['hands_found']:.3f}, nobody seen in "
        f"{result['nobody_seen']} frames, {result['ms_per_frame']} ms a frame"
    )
    print(f"  {'joint':16}{'PCK':>8}{'median px':>11}{'joints':>8}{'left out':>10}{'not read':>10}")
    for name, row in result["per_joint"].items():
        print(
            f"  {name:16}{row['pck']:8.4f}{row['median_error_px']:11.2f}{row['joints']:8d}"
            f"{row['left_out_by_us']:10d}{row['not_read_back']:10d}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="How near our pose maps come to published ones.")
    parser.add_argument("--driving", type=Path, action="append", required=True, help="driving video; repeatable")
    parser.add_argument("--published", type=Path, action="append", required=True, help="its published skeleton video")
    parser.add_argument("--frames", type=int, help="compare this many, evenly spaced; detection runs on all")
    parser.add_argument("--json", type=output_file, help="write the figures here")
    parser.add_argument("--out", type=output_file, help="write a sheet of examples here")
    options = parser.parse_args()
    if len(options.driving) != len(options.published):
        parser.error("give as many --published as --driving")
    if missing := [path for path in (*options.driving, *options.published) if not path.is_file()]:
        parser.error(f"{missing[0]}: no such file")
    sheet: list[np.ndarray] = []
    results = [measure(*pair, options.frames, sheet) for pair in zip(options.driving, options.published, strict=True)]
    for result in results:
        show(result)
    print(f"\non {platform.processor() or platform.machine()}, CPU")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.out:
        width = max(row.shape[1] for row in sheet)
        rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in sheet]
        picture = Image.fromarray(np.vstack(rows))
        picture.resize((picture.width // 2, picture.height // 2)).save(options.out)
    missed = [result["driving"] for result in results if result["all"]["pck"] < REQUIRED]
    if missed:
        print(f"below the required PCK of {REQUIRED}: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

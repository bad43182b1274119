"""The reading of published skeletons, on skeletons whose joints are known, and the figures made of it."""

import importlib
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from xdyna_model.detectors import BODY, Person
from xdyna_model.pose_map import draw_pose

HEIGHT, WIDTH = 896, 512
ROOT = Path(__file__).parents[2]
POSE = ROOT.parent / "shared" / "assets" / "pose"
STANDING = np.array(
    [
        (200, 100),
        (200, 180),
        (150, 182),
        (120, 260),
        (100, 330),
        (250, 178),
        (283, 262),
        (300, 340),
        (170, 360),
        (165, 500),
        (160, 640),
        (230, 362),
        (236, 502),
        (242, 644),
    ],
    np.float64,
)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("mediapipe", reason="needs xdyna-model[detect]")
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("pose_maps")


def person(body: np.ndarray, hands: bool = True) -> Person:
    """Somebody with these joints and hands of a published size beyond the wrists."""
    rng = np.random.default_rng(int(body.sum()))
    fingers = np.zeros((2, 21, 3), np.float32)
    for side, (elbow, wrist) in enumerate(((6, 7), (3, 4))):
        ahead = (body[wrist] - body[elbow]) / np.linalg.norm(body[wrist] - body[elbow])
        fingers[side, :, :2] = body[wrist] + 26 * ahead + rng.normal(0, 5, (21, 2))
        fingers[side, :, 2] = hands
    joints = np.concatenate([body, np.ones((14, 1))], axis=1).astype(np.float32)
    return Person(joints, fingers, np.zeros((68, 3), np.float32))


def through_h264(path: Path, pictures: list[np.ndarray]) -> list[np.ndarray]:
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for picture in pictures:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        video.mux(stream.encode())
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_joints_come_back_from_a_compressed_video(bench: ModuleType, tmp_path: Path):
    rng = np.random.default_rng(0)
    bodies = [np.floor(STANDING + rng.uniform(-8, 8, (14, 2)) + (12 * i, 7 * i)) for i in range(8)]
    pictures = [draw_pose(person(body), HEIGHT, WIDTH) for body in bodies]
    decoded = through_h264(tmp_path / "skeleton.mp4", pictures)
    assert len(decoded) == len(bodies)
    read = np.stack([bench.read_joints(picture) for picture in decoded])
    error = np.linalg.norm(read - np.stack(bodies), axis=2)
    assert np.isfinite(error).all()
    assert error.max() < 1.5
    assert np.median(error) < 0.7
    # No lean to one side, which would favour or harm a detector with the same lean.
    assert np.abs((read - np.stack(bodies)).mean(axis=(0, 1))).max() < 0.5


def test_what_is_not_there_is_not_read(bench: ModuleType):
    body = STANDING.copy()
    body[4] = (-50, 300)  # out of the picture
    someone = person(body)
    someone.body[13, 2] = 0
    read = bench.read_joints(draw_pose(someone, HEIGHT, WIDTH))
    missing = np.isnan(read).all(axis=1)
    assert [name for name, gone in zip(BODY, missing, strict=True) if gone] == ["right_wrist", "left_ankle"]
    assert np.isnan(bench.read_joints(draw_pose(None, HEIGHT, WIDTH))).all()


def test_a_hand_is_not_mistaken_for_the_left_knee(bench: ModuleType):
    body = STANDING.copy()
    body[7] = (250, 330)  # the left hand lies on the left thigh
    read = bench.read_joints(draw_pose(person(body), HEIGHT, WIDTH))
    assert np.linalg.norm(read[12] - body[12]) < 1
    someone = person(STANDING)
    someone.body[11:, 2] = 0  # no left leg: no left knee, though the hands have its colour
    assert np.isnan(bench.read_joints(draw_pose(someone, HEIGHT, WIDTH))[12]).all()


def measured(bench: ModuleType, published: np.ndarray, ours: np.ndarray):
    frames = len(published)
    return bench.Measured(published, ours, np.ones(frames, bool), np.ones((frames, 2), bool), np.full(frames, 0.05))


def test_the_figures_see_planted_faults(bench: ModuleType):
    published = np.repeat(STANDING[None], 10, axis=0)  # torso: (200, 180) to (200, 361)
    ours = np.concatenate([published, np.ones((10, 14, 1))], axis=2)
    perfect = bench.figures(measured(bench, published, ours), HEIGHT, WIDTH)
    assert (perfect["all"]["pck"], perfect["all"]["median_error_px"], perfect["all"]["joints"]) == (1, 0, 140)
    assert perfect["ms_per_frame"] == 50

    wrong = ours.copy()
    wrong[:5, 4, 0] += 0.19 * 181  # near enough
    wrong[:, 7, 1] += 0.21 * 181  # not near enough
    wrong[:4, 0, 2] = 0.1  # where it should be, but not drawn
    faults = bench.figures(measured(bench, published, wrong), HEIGHT, WIDTH)
    assert faults["per_joint"]["right_wrist"]["pck"] == 1
    assert faults["per_joint"]["left_wrist"]["pck"] == 0
    assert (faults["per_joint"]["nose"]["pck"], faults["per_joint"]["nose"]["left_out_by_us"]) == (0.6, 4)
    assert faults["all"]["pck"] == round((140 - 10 - 4) / 140, 4)


def test_what_cannot_be_read_counts_neither_way_and_is_told(bench: ModuleType):
    published = np.repeat(STANDING[None], 10, axis=0)
    ours = np.concatenate([published, np.ones((10, 14, 1))], axis=2)
    published[3:6, 1] = np.nan  # the neck, so the torso of these frames comes from their neighbours
    published[0, 4] = (-20, 300)  # out of the picture
    ours[0, 4, 0] += 400
    result = bench.figures(measured(bench, published, ours), HEIGHT, WIDTH)
    assert result["all"]["pck"] == 1
    assert (result["all"]["joints"], result["all"]["not_read_back"]) == (136, 3)
    assert result["frames_with_a_joint_not_read_back"] == 3
    assert result["all"]["pck_if_all_not_read_back_were_wrong"] == round(136 / 139, 4)


def test_our_drawing_looks_like_the_published_one(bench: ModuleType):
    path = POSE / "example_1_pose_1.mp4"
    if not path.is_file():
        pytest.skip(f"{path} is not here: the authors' videos are not part of the repository")
    with av.open(str(path)) as video:
        published = next(video.decode(video=0)).to_ndarray(format="rgb24")
    read = bench.read_joints(published)
    assert np.isfinite(read).all()
    ours = draw_pose(person(np.round(read), hands=False), HEIGHT, WIDTH)
    drawn = ours.any(axis=2)
    difference = np.abs(ours.astype(int) - published).max(axis=2)[drawn]
    assert np.median(difference) < 12
    assert (difference < 60).mean() > 0.85
    # And it draws nothing that we do not, but the hands: all else that is lit touches our drawing.
    lit = (published.max(axis=2) > 60) & ~((published[..., 2] > 200) & (published[..., 0] < 60))
    assert (lit & ~drawn).sum() < 0.15 * lit.sum()

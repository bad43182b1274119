"""How scenes are cut into clips, and what is refused for all of a video."""

import io
import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from xdyna_train.prepare_options import Dropped, PrepareOptions
from xdyna_train.survey import Piece, Survey, judge

sys.path.insert(0, str(Path(__file__).parent))
from suit_films import FPS, place, run

RATES = [Fraction(1, 100), Fraction(8), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)]
seconds = st.integers(500, 12_000).map(lambda thousandths: Fraction(thousandths, 1000))


def one_scene(num_frames: int, fps: float) -> Survey:
    """A good video without cuts, in which nobody is seen."""
    frames = range(num_frames)
    signatures = np.zeros((num_frames, 384), np.float16)
    return Survey("video", fps, (1080, 1920), signatures, dict.fromkeys(frames), dict.fromkeys(frames, 0.9))


@settings(deadline=None)
@given(st.sampled_from(RATES), seconds, seconds, st.integers(1, 700))
@example(Fraction(30), Fraction(8), Fraction(10), 360)  # equal parts would be too short
@example(Fraction(30), Fraction(8), Fraction(10), 630)
@example(Fraction(30000, 1001), Fraction(1), Fraction(1), 600)  # no whole number of frames lasts a second
@example(Fraction(25), Fraction(14, 25), Fraction(14, 25), 28)  # 14 frames; of floats, a trace more
def test_as_much_of_a_scene_is_kept_as_can_be(rate: Fraction, a: Fraction, b: Fraction, num_frames: int) -> None:
    options = PrepareOptions(min_seconds=float(min(a, b)), max_seconds=float(max(a, b)))
    pieces = list(judge(one_scene(num_frames, float(rate)), options))
    assert [0, *(piece.last for piece in pieces)] == [*(piece.first for piece in pieces), num_frames]
    least = math.ceil(min(a, b) * rate)
    longest = max(math.floor(max(a, b) * rate), least)
    kept = [piece.last - piece.first for piece in pieces if isinstance(piece, Piece)]
    assert all(least <= length <= longest for length in kept)
    assert max(kept, default=0) - min(kept, default=0) <= 1
    assert sum(kept) == min(num_frames, num_frames // least * longest)
    assert {piece.reason for piece in pieces if isinstance(piece, Dropped)} <= {"too short"}


def test_no_scene_is_long_enough_for_a_clip_without_end() -> None:
    """1e308 seconds are infinitely many frames, for a float."""
    (piece,) = judge(one_scene(90, 30.0), PrepareOptions(min_seconds=1e308, max_seconds=1e308))
    assert piece == Dropped("video", 0, 90, "too short", "3.00 seconds")


def transport_stream(frames: np.ndarray) -> bytes:
    """A file of a kind that may be appended to another."""
    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            picture.pts = index
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return file.getvalue()


def test_a_video_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    """A window is one for all frames of a piece: of smaller ones it would lie elsewhere, or outside."""
    grass = place("grass", 24)
    (tmp_path / "videos").mkdir()
    for name, late in (("changes.ts", grass[12:, ::2, ::2]), ("same.ts", grass[12:])):
        (tmp_path / "videos" / name).write_bytes(transport_stream(grass[:12]) + transport_stream(late))
    report = run(tmp_path / "videos", tmp_path / "set")
    assert report.scenes == 1  # of the other
    (dropped,) = [json.loads(line) for line in (tmp_path / "set" / "dropped.jsonl").read_text().splitlines()]
    assert (dropped["video"], dropped["reason"]) == ("changes.ts", "unreadable")
    assert dropped["detail"] == "changes its size after 12 frames; re-encode it"

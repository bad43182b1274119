"""A video's rate: of the frames that are there, the declared one where it fits them, held to what can be written."""

import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from xdyna_model import video as video_module
from xdyna_model.errors import InputError
from xdyna_model.video import FASTEST, SLOWEST, check_length, frame_rate, read_frames, write_video

sys.path.insert(0, str(Path(__file__).parent))
from moving_pictures import moving_square


def test_rational_rate_survives(tmp_path: Path) -> None:
    write_video(tmp_path / "ntsc.mp4", moving_square(3), fps=30000 / 1001)
    assert frame_rate(tmp_path / "ntsc.mp4") == 30000 / 1001


def webm(path: Path, times: Sequence[int], rate: int | None, *, hidden_every: int | None = None) -> None:
    """A VP8 file with frames at these milliseconds that declares `rate`, or none, as browsers write it."""
    coder = av.CodecContext.create("libvpx", "w")
    coder.width = coder.height = 64
    coder.pix_fmt, coder.time_base = "yuv420p", Fraction(1, 1000)
    with av.open(str(path), "w", format="webm") as out:
        stream = out.add_mux_stream("libvpx", rate, width=64, height=64, time_base=Fraction(1, 1000))
        pictures = [av.VideoFrame.from_ndarray(np.full((64, 64, 3), 7 * i % 255, np.uint8)) for i in range(len(times))]
        for picture, time in zip(pictures, times, strict=True):
            picture.pts, picture.time_base = time, Fraction(1, 1000)
        packets = [packet for picture in [*pictures, None] for packet in coder.encode(picture)]
        for index, packet in enumerate(packets):
            packet.stream = stream
            out.mux(packet)
            if hidden_every and index % hidden_every == 1:  # as an encoder of two passes does
                data = bytes(packet)
                hidden = av.Packet(bytes([data[0] & ~0x10]) + data[1:])
                hidden.stream, hidden.time_base = stream, Fraction(1, 1000)
                hidden.pts = hidden.dts = times[index] + 1
                out.mux(hidden)


def declared(path: Path) -> tuple[Fraction | None, Fraction | None]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.average_rate, stream.guessed_rate


def test_rate_of_a_webcam(tmp_path: Path) -> None:
    """A browser declares no rate, and FFmpeg then guesses its clock's."""
    path = tmp_path / "webcam.webm"
    times = np.cumsum(np.random.default_rng(0).integers(25, 42, 60)).tolist()
    webm(path, times, None)
    assert declared(path) == (None, 1000)
    clip = read_frames(path)
    assert len(clip.frames) == 60
    assert clip.fps == pytest.approx(59 / (times[-1] - times[0]) * 1000, rel=1e-12)


def test_rate_is_of_the_frames_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "drops.webm"
    webm(path, [0, 16, 50, 100, 133, 166, 180, 300, 900, 1000, 1070], 30)
    assert declared(path) == (30, 30)
    assert frame_rate(path) == pytest.approx(10 / 1.07, rel=1e-12)


@pytest.mark.parametrize(("count", "rate"), [(2, 30), (100, 30), (100, None)])
def test_rounded_times_leave_the_declared_rate(tmp_path: Path, count: int, rate: int | None) -> None:
    path = tmp_path / "even.webm"
    webm(path, [round(1000 * index / 30) for index in range(count)], rate)
    assert declared(path)[1] == 30
    assert frame_rate(path) == 30


def test_frames_that_nobody_sees_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "hidden.webm"
    webm(path, [round(1000 * index / 30) for index in range(60)], 30, hidden_every=8)
    clip = read_frames(path)
    assert (len(clip.frames), clip.fps) == (60, 30)
    with pytest.raises(InputError, match="has 60 frames, 61 are needed"):
        check_length(path, 61)


def test_rate_where_there_is_no_mean(tmp_path: Path, video: Path) -> None:
    webm(tmp_path / "one.webm", [0], 30)
    assert frame_rate(tmp_path / "one.webm") == 30
    with av.open(str(video)) as source, av.open(str(tmp_path / "bare"), "w", format="h264") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    assert frame_rate(tmp_path / "bare") == declared(tmp_path / "bare")[0]  # it holds no times


def test_rate_of_what_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg mostly ends in silence at damage; planted here."""
    webm(tmp_path / "webcam.webm", [0, 20, 60, 400], None)
    whole = video_module._pictures

    def damaged(*options) -> Iterator[av.Packet]:
        yield from whole(*options)
        raise av.InvalidDataError(1, "planted")

    monkeypatch.setattr(video_module, "_pictures", damaged)
    assert frame_rate(tmp_path / "webcam.webm") == 7.5
    check_length(tmp_path / "webcam.webm", 5)


@pytest.mark.parametrize(
    ("times", "rate"), [(range(0, 20), FASTEST), ([0, 500_000], SLOWEST), ([0], FASTEST)], ids=["fast", "slow", "one"]
)
def test_rates_that_are_a_slip(tmp_path: Path, times: Sequence[int], rate: float) -> None:
    """They are held to what can be written."""
    webm(tmp_path / "odd.webm", times, None)
    assert frame_rate(tmp_path / "odd.webm") == rate
    write_video(tmp_path / "out.mp4", moving_square(3), frame_rate(tmp_path / "odd.webm"))
    assert float(declared(tmp_path / "out.mp4")[0] or 0) == rate

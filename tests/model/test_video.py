"""Videos are read as a player shows them, bad ones are named, and a file is written whole or not at all."""

import errno
import io
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from xdyna_model import video as video_module
from xdyna_model.errors import InputError
from xdyna_model.outputs import check_output, staged, staged_folder
from xdyna_model.video import (
    FASTEST,
    SLOWEST,
    check_length,
    crop_and_resize,
    encode_video,
    frame_rate,
    iter_frames,
    read_frames,
    write_video,
)


def moving_square(count: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A white square that walks to the right over a coloured ground. [F, H, W, 3] uint8."""
    frames = np.full((count, height, width, 3), (40, 90, 160), np.uint8)
    for index, frame in enumerate(frames):
        frame[8:24, 2 * index : 2 * index + 16] = 255
    return frames


def noise(count: int, side: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "dance.mp4"
    write_video(path, moving_square(), fps=8)
    return path


def one_line(error: pytest.ExceptionInfo[InputError], path: Path) -> str:
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# Reading


def test_frames_and_rate_come_back(video: Path) -> None:
    clip = read_frames(video)
    assert clip.fps == 8
    assert clip.frames.dtype == np.uint8
    assert clip.frames.shape == (12, 48, 64, 3)
    assert np.abs(clip.frames.astype(int) - moving_square()).mean() < 4


def test_first_frames_at_a_size(video: Path) -> None:
    clip = read_frames(video, 5, size=(16, 8))
    assert clip.frames.shape == (5, 16, 8, 3)
    np.testing.assert_array_equal(clip.frames, crop_and_resize(read_frames(video).frames[:5], 16, 8))


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
    with pytest.raises(InputError, match="has 60 frames, 61 were asked for"):
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


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path: Path, degrees: int, turns: int) -> None:
    path = tmp_path / "phone.mp4"
    upright = moving_square(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 8, options={"crf": "1"})
        stream.height, stream.width = upright.shape[1:3]
        stream.set_display_rotation(degrees)
        for frame in upright:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    seen = read_frames(path).frames
    wanted = np.rot90(upright, k=turns, axes=(1, 2))  # counter-clockwise, as the display matrix says
    assert seen.shape == wanted.shape
    assert np.abs(seen.astype(int) - wanted).mean() < 4


@pytest.mark.parametrize("ask", [read_frames, check_length])
def test_more_frames_than_there_are(video: Path, ask: Callable[[Path, int], object]) -> None:
    ask(video, 12)
    with pytest.raises(InputError) as error:
        ask(video, 13)
    assert "has 12 frames, 13 were asked for" in one_line(error, video)


def text_file(path: Path) -> None:
    path.write_text("no video\n" * 200)


def picture(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path, "PNG")


def sound(path: Path) -> None:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", 8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))


def with_cover(path: Path, film: bool) -> None:
    """A song, or a film of twelve frames, with a picture on its cover that comes before it."""
    jacket = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(jacket, "PNG")
    with av.open(str(path), "w", format="mp4") as container:
        if film:
            stream = container.add_stream("libx264", 8, width=64, height=48)
            frames = [av.VideoFrame.from_ndarray(frame) for frame in moving_square()]
        else:
            stream = container.add_stream("aac", 8000, layout="mono")
            frames = [av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")]
            frames[0].sample_rate = 8000
        cover = container.add_mux_stream("png", width=64, height=64)
        cover.disposition = Disposition.attached_pic
        for frame in [*frames, None]:
            container.mux(stream.encode(frame))
        packet = av.Packet(jacket.getvalue())
        packet.stream, packet.pts, packet.dts = cover, 0, 0
        container.mux(packet)
    data = path.read_bytes()
    start = data.index(b"moov") - 4
    end = start + int.from_bytes(data[start : start + 4], "big")
    track, tags = data.index(b"trak", start) - 4, data.index(b"udta", start) - 4
    path.write_bytes(data[:track] + data[tags:end] + data[track:tags] + data[end:])


def test_a_cover_is_not_the_film(tmp_path: Path) -> None:
    with_cover(tmp_path / "film.mp4", film=True)
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert container.streams.video[0].disposition & Disposition.attached_pic
    clip = read_frames(tmp_path / "film.mp4")
    assert (clip.frames.shape, clip.fps) == ((12, 48, 64, 3), 8)
    check_length(tmp_path / "film.mp4", 12)


@pytest.mark.parametrize(
    ("make", "name", "says"),
    [
        (lambda path: None, "clip.mp4", "no such file"),
        (lambda path: path.mkdir(), "clip.mp4", "is a folder"),
        (lambda path: path.touch(), "clip.mp4", "is an empty file"),
        (text_file, "clip.mp4", "holds no video"),
        (text_file, "clip.txt", "holds no video"),
        (text_file, "odd:name.mp4", "holds no video"),
        (picture, "clip.png", "holds no video"),
        (sound, "clip.wav", "holds no video"),
        (lambda path: with_cover(path, film=False), "song.m4a", "holds no video"),
    ],
)
def test_what_is_no_video(tmp_path: Path, make, name: str, says: str) -> None:
    path = tmp_path / name
    make(path)
    for read in (read_frames, frame_rate):
        with pytest.raises(InputError) as error:
            read(path)
        assert says in one_line(error, path)


def as_matroska(path: Path) -> None:
    """Put the frames of an MP4 file into Matroska, under the same name."""
    whole = io.BytesIO()
    with av.open(str(path)) as source, av.open(whole, "w", "matroska") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    path.write_bytes(whole.getvalue())


@pytest.mark.parametrize("matroska", [False, True])
def test_cut_off_after_some_frames(tmp_path: Path, matroska: bool) -> None:
    """The message gives a number of frames, and asking for that many works."""
    path = tmp_path / "cut"
    encode_video(path, noise(20), fps=8)
    if matroska:
        as_matroska(path)
    assert len(read_frames(path).frames) == 20
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(InputError) as error:
        read_frames(path)
    message = one_line(error, path)
    assert "damaged or cut off after" in message
    readable = int(message.split("at most ")[1].split()[0])
    assert 0 < readable < 20
    assert len(read_frames(path, readable).frames) == readable
    assert len(list(islice(iter_frames(path), readable))) == readable


def test_cut_off_before_the_index(tmp_path: Path, video: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes()[:200])
    with pytest.raises(InputError) as error:
        read_frames(path)
    assert "cut off" in one_line(error, path)


# Writing


def test_same_frames_same_bytes(tmp_path: Path) -> None:
    """Whatever the memory held before: with x264's own settings every one of these came out different."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 128, (10, 128, 64, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):  # somebody who lifts a bar
        frame[10:115, 30:34] += 127
        frame[40 + index : 44 + index, 10:50] = 200
    frames = np.tile(frames, (3, 1, 1, 1))
    written = set()
    for _ in range(6):
        _ = [rng.random(rng.integers(100, 200_000)) for _ in range(20)]
        write_video(tmp_path / "a.mp4", frames, fps=8)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1
    write_video(tmp_path / "a.mp4", 255 - frames, fps=8)
    assert (tmp_path / "a.mp4").read_bytes() not in written


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 5),
    height=st.integers(16, 64),
    width=st.integers(16, 64),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_what_is_written_is_read(tmp_path: Path, count: int, height: int, width: int, colour: tuple) -> None:
    frames = np.full((count, height, width, 3), colour, np.uint8)
    write_video(tmp_path / "plain.mp4", frames, fps=8)
    seen = read_frames(tmp_path / "plain.mp4").frames
    assert seen.shape == (count, height + height % 2, width + width % 2, 3)  # 4:2:0 has even sides only
    assert np.abs(seen.mean((0, 1, 2)) - colour).max() < 5


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("there_before", [False, True])
def test_a_fault_half_way_leaves_nothing(tmp_path: Path, fault: BaseException, there_before: bool) -> None:
    path = tmp_path / "out.mp4"
    if there_before:
        path.write_bytes(b"precious")

    def frames():
        yield from noise(10)
        raise fault

    with pytest.raises(InputError if isinstance(fault, OSError) else type(fault)) as error:
        write_video(path, frames(), fps=8)
    if isinstance(fault, OSError):
        assert str(error.value).startswith(f"{path}: cannot be written (no space left on device)")
    assert [p.name for p in tmp_path.iterdir()] == (["out.mp4"] if there_before else [])
    assert not there_before or path.read_bytes() == b"precious"


def test_the_system_refuses_half_way(tmp_path: Path) -> None:
    """A real fault in the encoder's own writing: a limit on the size of files, for want of a small disk."""
    path = tmp_path / "out.mp4"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_video(path, noise(60), fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "out.mp4", [], fps=8)
    assert not list(tmp_path.iterdir())


# Outputs


def test_check_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output(tmp_path / "new.mp4")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="does not exist"):
        check_output(tmp_path / "missing" / "new.mp4")
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(InputError, match="not a plain file"):
        check_output("/dev/null")

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)  # the superuser, who runs tests in containers, may write anywhere
    with pytest.raises(InputError, match="permission denied"):
        check_output(tmp_path / "new.mp4")


def test_staged_files_appear_together(tmp_path: Path) -> None:
    one, two, link = tmp_path / "one.mp4", tmp_path / "two.png", tmp_path / "link.png"
    link.symlink_to(two)
    with staged(one, link) as drafts:
        for draft in drafts:
            draft.write_bytes(b"new")
        assert not one.exists()
        assert [draft.suffix for draft in drafts] == [".mp4", ".png"]
    assert one.read_bytes() == two.read_bytes() == b"new"
    assert link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.png", "one.mp4", "two.png"]


def test_staged_folder(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "model") as draft:
        (draft / "weights").write_bytes(b"1")
    assert (tmp_path / "model" / "weights").read_bytes() == b"1"
    with pytest.raises(InputError, match="is there already"), staged_folder(tmp_path / "model"):
        pass
    (tmp_path / "model" / "weights").unlink()
    with staged_folder(tmp_path / "model") as draft:  # an empty one makes way
        (draft / "weights").write_bytes(b"2")
    assert (tmp_path / "model" / "weights").read_bytes() == b"2"

    def interrupted() -> None:
        with staged_folder(tmp_path / "other") as draft:
            (draft / "weights").write_bytes(b"1")
            raise KeyboardInterrupt

    def full() -> None:
        with staged_folder(tmp_path / "other"):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(InputError, match=r"other: cannot be written \(no space left on device\)"):
        full()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]

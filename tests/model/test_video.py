"""Videos are read as a player shows them, and bad ones are named."""

import io
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import Colorspace
from PIL import Image
from xdyna_model.errors import InputError
from xdyna_model.video import (
    check_length,
    count_frames,
    crop_and_resize,
    encode_video,
    frame_rate,
    iter_frames,
    read_frames,
    write_video,
)

sys.path.insert(0, str(Path(__file__).parent))
from moving_pictures import moving_square, noise


def one_line(error: pytest.ExceptionInfo[InputError], path: Path) -> str:
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


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


@pytest.mark.parametrize("tag", [None, Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize(("height", "width"), [(360, 640), (720, 1280)])
def test_colours_of_an_untagged_file_go_by_its_size(tmp_path: Path, height: int, width: int, tag) -> None:
    path, colour = tmp_path / "camera.mp4", np.array([200, 60, 30])
    space = tag or (Colorspace.ITU709 if height == 720 else Colorspace.ITU601)  # as mpv and browsers take it
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 8, options={"crf": "4"})
        stream.height, stream.width = height, width
        if tag is not None:
            stream.codec_context.colorspace = tag
        picture = np.broadcast_to(colour.astype(np.uint8), (height, width, 3))
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=space)))
        container.mux(stream.encode(None))
    assert np.abs(read_frames(path).frames.mean((0, 1, 2)) - colour).max() < 3


@pytest.mark.parametrize("ask", [read_frames, check_length])
def test_more_frames_than_there_are(video: Path, ask: Callable[[Path, int], object]) -> None:
    ask(video, 12)
    with pytest.raises(InputError) as error:
        ask(video, 13)
    assert "has 12 frames, 13 are needed" in one_line(error, video)


@pytest.mark.parametrize("count", [0, -1])
def test_no_frames_are_no_choice(video: Path, count: int) -> None:
    with pytest.raises(InputError) as error:
        read_frames(video, count)
    assert f"{count} frames were asked for; ask for one at least" in one_line(error, video)


def test_a_video_that_changes_its_size(tmp_path: Path) -> None:
    path = tmp_path / "joined.h264"
    for index, side in enumerate((64, 96)):
        part = tmp_path / f"{index}.h264"
        with av.open(str(part), "w", format="h264") as container:
            stream = container.add_stream("libx264", 8, width=side, height=side)
            for picture in np.zeros((2, side, side, 3), np.uint8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
        with path.open("ab") as whole:
            whole.write(part.read_bytes())
    assert read_frames(path, size=(64, 64)).frames.shape == (4, 64, 64, 3)
    with pytest.raises(InputError) as error:
        read_frames(path)
    assert "frame 2 is [96, 96, 3] but frame 0 is [64, 64, 3]" in one_line(error, path)


def test_frames_are_counted_up_to_the_damage(tmp_path: Path) -> None:
    path, seen = tmp_path / "cut.mp4", []
    write_video(path, noise(12), fps=8)
    assert count_frames(path) == 12
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(InputError):
        seen.extend(iter_frames(path))
    assert 0 < count_frames(path) == len(seen) < 12


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


def test_a_title_that_is_not_utf8_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "camera.avi"
    with av.open(path, "w", metadata_errors="ignore") as container:
        container.metadata["title"] = "CafeXX"
        stream = container.add_stream("mjpeg", 10, width=32, height=32, pix_fmt="yuvj420p")
        for picture in np.zeros((3, 32, 32, 3), np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    title = path.read_bytes()
    assert title.count(b"CafeXX") == 1
    path.write_bytes(title.replace(b"CafeXX", b"Caf\xe9XX"))
    assert len(read_frames(path).frames) == 3


def test_a_codec_that_is_not_known_is_named(tmp_path: Path, video: Path) -> None:
    path = tmp_path / "odd.mp4"
    path.write_bytes(video.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(InputError, match="codec is not known"):
        check_length(path, 1)


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

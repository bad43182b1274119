"""Frames in, frames out: videos as arrays."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from xdyna_model.errors import InputError, naming
from xdyna_model.images import FrameBuffer, check_file, fit
from xdyna_model.outputs import staged

# What FFmpeg opens as a video although it is none: text drawn as a terminal would, and single pictures.
NO_VIDEO = ("tty", "image2", "_pipe")
UNTAGGED = 2  # FFmpeg's "unspecified" colour space
# Frames per second that a file is believed: beyond these its times are a slip.
SLOWEST, FASTEST = 0.01, 240.0


@dataclass(frozen=True)
class VideoClip:
    """frames: [F, H, W, 3] uint8 RGB. fps: frames per second (the mean, where a video varies it)."""

    frames: np.ndarray
    fps: float


def read_frames(path: str | Path, num_frames: int | None = None, *, size: tuple[int, int] | None = None) -> VideoClip:
    """All of `iter_frames` (same arguments, same errors) and the frame rate. Also raises InputError for a video that
    changes its size, where `size` is None."""
    frames, path = FrameBuffer(), Path(path)
    with naming(path):
        for frame in iter_frames(path, num_frames, size=size):
            frames.append(frame)
    return VideoClip(frames.take(), frame_rate(path))


def iter_frames(
    path: str | Path, num_frames: int | None = None, *, size: tuple[int, int] | None = None
) -> Iterator[np.ndarray]:
    """Decode a video one frame at a time, upright and with square pixels: all of it, or the first `num_frames`.

    size: (height, width) to crop and scale each frame to (`images.fit`); None keeps the video's.
    Yields [H, W, 3] uint8 RGB. Raises InputError: a missing or empty file, a folder, a file that is no video; and
    after the frames that there are, a damaged or cut-off file, or one of fewer than `num_frames` frames, of which
    there must be one at least.
    """
    path = Path(path)
    if num_frames is not None and num_frames < 1:
        raise InputError(f"{path}: {num_frames} frames were asked for; ask for one at least")
    count = 0
    for frame in islice(_decode(path), num_frames):
        yield frame if size is None else fit(frame, *size)
        count += 1
    if num_frames is not None and count < num_frames:
        raise _too_short(path, count, num_frames)


def check_length(path: str | Path, num_frames: int) -> None:
    """Raise at once what `iter_frames` would raise at the end of a video of fewer than `num_frames` frames.

    Counts packets and decodes nothing, so damage is left for `iter_frames` to find. Raises InputError.
    """
    with _open(Path(path)) as (container, stream):
        try:
            count = sum(1 for _ in _pictures(container, stream))
        except av.FFmpegError:
            return
    if count < num_frames:
        raise _too_short(path, count, num_frames)


def count_frames(path: str | Path) -> int:
    """How many frames of a video can be decoded, up to the first damage: what a file declares and the packets in it can
    be more. Raises InputError: what `iter_frames` finds wrong before the first frame.
    """
    count = 0
    with _open(Path(path)) as (container, stream), suppress(av.FFmpegError):
        for _ in container.decode(stream):
            count += 1
    return count


def frame_rate(path: str | Path) -> float:
    """Frames per second of a video, the mean where it varies; at least `SLOWEST` and at most `FASTEST`.

    Reads the file and decodes nothing. Raises InputError: what `iter_frames` finds wrong before the first frame, or
    a file that does not say how fast it plays.
    """
    with _open(Path(path)) as (container, stream):
        rate = _mean_rate(container, stream)
    if not rate:
        raise InputError(f"{path}: does not say how fast it plays; re-encode it, for instance as MP4")
    return min(max(float(rate), SLOWEST), FASTEST)


def crop_and_resize(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """`images.fit` for each frame. frames: [F, H, W, 3] uint8. Returns [F, height, width, 3] uint8."""
    return np.stack([fit(frame, height, width) for frame in frames])


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, crf: float = 16) -> None:
    """Write an MP4 file (H.264, 4:2:0), whole or not at all.

    frames: [H, W, 3] uint8 RGB each, of one size; fps: frames per second, from `SLOWEST` to `FASTEST`; crf: 0
    (lossless) to 51, constant quality. The same frames give the same bytes. Raises ValueError for no frames, another
    rate or several sizes, and InputError where the file cannot be written (`outputs.staged`).
    """
    with staged(path) as [draft]:
        encode_video(draft, frames, fps, crf)


def encode_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float,
    crf: float = 16,
    keyframe_every: int | None = None,
    pix_fmt: Literal["yuv420p", "yuv444p"] = "yuv420p",
) -> None:
    """`write_video` into a file that may be left behind half-written. Raises OSError and ValueError.

    keyframe_every: frames from one key frame to the next, at most; a reader that jumps decodes so many in vain. None
    leaves it to x264 (250). pix_fmt: "yuv444p" keeps all of the colour, which not every player shows.
    """
    if not SLOWEST <= fps <= FASTEST:
        raise ValueError(f"a video of {fps} frames per second; expected {SLOWEST:g} to {FASTEST:g}")
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream: VideoStream | None = None
        rate, shape = Fraction(fps).limit_denominator(1001), None
        for index, array in enumerate(frames):
            if array.shape != (shape := shape or array.shape):
                raise ValueError(f"frame {index} is {list(array.shape)} but frame 0 is {list(shape)}")
            frame = np.pad(array, ((0, array.shape[0] % 2), (0, array.shape[1] % 2), (0, 0)), mode="edge")
            if stream is None:
                stream = container.add_stream("libx264", rate)
                stream.height, stream.width = frame.shape[:2]
                _configure(stream, crf, pix_fmt)
                if keyframe_every is not None:
                    stream.codec_context.gop_size = keyframe_every
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
            picture = rgb.reformat(format=pix_fmt, dst_colorspace=Colorspace.ITU709)
            picture.pts, picture.time_base = index, 1 / rate
            container.mux(stream.encode(picture))
        if stream is None:
            raise ValueError("a video needs at least one frame")
        container.mux(stream.encode(None))


def _configure(stream: VideoStream, crf: float, pix_fmt: str) -> None:
    stream.pix_fmt = pix_fmt
    # x264's macroblock tree reads memory that it has not set in pictures a few dozen pixels wide: same frames, other
    # bytes, in one run of ten.
    stream.options = {"crf": str(crf), "preset": "medium", "mbtree": "0"}
    context = stream.codec_context
    # Another number of threads gives other bytes too, and is taken from the machine unless told.
    context.thread_count = 4
    # Players guess the colours of an untagged file by its size, and guess differently.
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    context.color_range = ColorRange.MPEG


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and the video in it: the first that is not the cover of a song or a film."""
    check_file(path, "video")
    none = (
        f"{path}: holds no video that can be read (cut off? a picture? only sound?); give a complete one, such as MP4"
    )
    try:
        # "file:" keeps a colon in a name from being taken for a network address.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except av.FFmpegError as error:
        raise InputError(none) from error
    with container:
        videos = (video for video in container.streams.video if not video.disposition & Disposition.attached_pic)
        stream = next(videos, None)
        if stream is None or container.format.name.endswith(NO_VIDEO):
            raise InputError(none)
        if stream.codec_context is None:
            raise InputError(f"{path}: its codec is not known; re-encode it, for example as H.264 in MP4")
        yield container, stream


def _pictures(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """The packets that show a frame, in decoding order. Raises FFmpegError at damage."""
    for packet in container.demux(stream):
        # VP8 has frames that others are predicted from and nobody sees (RFC 6386, Section 9.1).
        hidden = stream.codec_context.name == "vp8" and packet.size > 0 and not bytes(packet)[0] & 0x10
        if packet.size > 0 and not hidden:
            yield packet


def _mean_rate(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """The mean of the frames that are there. What a file declares can be far from it (a webcam's recording gives its
    clock, 1000), and is taken where it agrees to half a frame, or where there are no times to take a mean of."""
    declared = stream.average_rate or stream.guessed_rate
    times: list[int] = []
    with suppress(av.FFmpegError):  # damage is for `iter_frames` to find
        for packet in _pictures(container, stream):
            if packet.pts is None:
                return declared
            times.append(packet.pts)
    if len(set(times)) < 2:
        return declared
    assert stream.time_base is not None
    seconds = (max(times) - min(times)) * stream.time_base
    steps = len(times) - 1
    return declared if declared and abs(declared * seconds - steps) <= Fraction(1, 2) else steps / seconds


def _decode(path: Path) -> Iterator[np.ndarray]:
    count = 0
    end = 0.0
    with _open(path) as (container, stream):
        try:
            for frame in container.decode(stream):
                yield _upright(frame, stream)
                count += 1
                end = (frame.time or 0.0) + float(frame.duration * (frame.time_base or 0))
        except av.FFmpegError as error:
            raise _damaged(path, count) from error
        if count == 0:
            raise InputError(f"{path}: not one frame of it can be decoded; give another video, or re-encode it")
        # A cut-off Matroska file simply ends: only the length it promised tells.
        if end < _promised_seconds(stream) - 0.5:
            raise _damaged(path, count)


def _upright(frame: av.VideoFrame, stream: VideoStream) -> np.ndarray:
    """[H, W, 3] uint8 RGB as a player shows it."""
    ratio = stream.sample_aspect_ratio or 1
    # FFmpeg takes all that is untagged for BT.601; players (mpv, browsers) do so for small pictures only.
    untagged_hd = frame.colorspace == UNTAGGED and (frame.width >= 1280 or frame.height > 576)
    space = Colorspace.ITU709 if untagged_hd else None
    rgb = frame.to_ndarray(format="rgb24", width=max(1, round(frame.width * ratio)), src_colorspace=space)
    if frame.rotation:
        rgb = np.rot90(rgb, k=round(frame.rotation / 90))
    return np.ascontiguousarray(rgb)


def _promised_seconds(stream: VideoStream) -> float:
    """The length that a Matroska file gives for its video track; 0 for all others, which fail loudly when cut."""
    hours, _, rest = stream.metadata.get("DURATION", "").partition(":")
    minutes, _, seconds = rest.partition(":")
    try:
        return 3600 * float(hours) + 60 * float(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _too_short(path: str | Path, count: int, asked: int) -> InputError:
    return InputError(f"{path}: has {count} frames, {asked} are needed; ask for at most {count} frames")


def _damaged(path: Path, count: int) -> InputError:
    if count == 0:
        return InputError(f"{path}: is damaged or cut off, no frame can be read; give another video")
    return InputError(
        f"{path}: is damaged or cut off after {count} readable frames; re-encode it, or ask for at most {count} frames"
    )

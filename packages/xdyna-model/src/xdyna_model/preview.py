"""The preview: reference, driving video, conditions and result side by side, as a video and as one sheet."""

from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Streams = Mapping[str, np.ndarray]  # title -> [F, H, W, 3] uint8, or [1, H, W, 3] where it stands still

PANEL_HEIGHT = 448  # pixels; larger pictures are scaled down to it, much smaller ones by a whole factor up
PANEL_WIDTH = 2048  # so are wider ones: six of these are a picture that H.264 still takes
SHEET_PANEL_HEIGHT = 160
LABEL_HEIGHT = 22
LABEL_WIDTH = 84
MARGIN = 4
GROUND = (24, 24, 24)
INK = (235, 235, 235)


def side_by_side(streams: Streams) -> Iterator[np.ndarray]:
    """One picture a frame: the streams from left to right under their titles.

    Yields [H', W', 3] uint8, both sides even, as many as the longest stream has frames.
    """
    height, width = _panel(streams, PANEL_HEIGHT)
    sheet = Image.new("RGB", (MARGIN + len(streams) * (width + MARGIN), LABEL_HEIGHT + height + MARGIN), GROUND)
    sheet = sheet.crop((0, 0, sheet.width + sheet.width % 2, sheet.height + sheet.height % 2))
    lefts = [MARGIN + index * (width + MARGIN) for index in range(len(streams))]
    for left, title in zip(lefts, streams, strict=True):
        _write(sheet, title, left, 0, width)
    for index in range(_length(streams)):
        for left, frames in zip(lefts, streams.values(), strict=True):
            sheet.paste(_picture(frames, index, height, width), (left, LABEL_HEIGHT))
        yield np.asarray(sheet)


def contact_sheet(streams: Streams, columns: int = 6) -> Image.Image:
    """One picture of the whole video: a row for each stream, a column for each of `columns` evenly spaced frames."""
    height, width = _panel(streams, SHEET_PANEL_HEIGHT)
    length = _length(streams)
    shown = np.unique(np.linspace(0, length - 1, columns).round().astype(int))
    size = (
        LABEL_WIDTH + len(shown) * (width + MARGIN),
        LABEL_HEIGHT + len(streams) * (height + MARGIN),
    )
    sheet = Image.new("RGB", size, GROUND)
    for row, (title, frames) in enumerate(streams.items()):
        top = LABEL_HEIGHT + row * (height + MARGIN)
        _write(sheet, title, MARGIN, top + (height - LABEL_HEIGHT) // 2, LABEL_WIDTH - MARGIN)
        for column, index in enumerate(shown):
            left = LABEL_WIDTH + column * (width + MARGIN)
            sheet.paste(_picture(frames, int(index), height, width), (left, top))
            if row == 0:
                _write(sheet, str(index + 1), left, 0, width)
    return sheet


def _length(streams: Streams) -> int:
    return max(len(frames) for frames in streams.values())


def _panel(streams: Streams, limit: int) -> tuple[int, int]:
    """(height, width) of one panel: that of the first stream, in a scale that brings its height near `limit`, or its
    width to `PANEL_WIDTH` if it would be more."""
    height, width = next(iter(streams.values())).shape[1:3]
    scale = min(limit / height, PANEL_WIDTH / width)
    scale = scale if scale < 1 else int(scale)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _picture(frames: np.ndarray, index: int, height: int, width: int) -> Image.Image:
    picture = Image.fromarray(frames[min(index, len(frames) - 1)])
    how = Image.Resampling.LANCZOS if picture.height > height else Image.Resampling.NEAREST
    return picture if picture.size == (width, height) else picture.resize((width, height), how)


def _write(sheet: Image.Image, text: str, left: int, top: int, width: int) -> None:
    """Write one line at the left of a field `LABEL_HEIGHT` high, in letters small enough for its width."""
    size = 13.0
    font = ImageFont.load_default(size)
    while font.getlength(text) > width and size > 6:
        size -= 1
        font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, top + LABEL_HEIGHT // 2), text, fill=INK, font=font, anchor="lm")

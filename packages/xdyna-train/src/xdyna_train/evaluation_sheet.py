"""The pictures of an evaluation: reference, pose, truth and result of some cases, four times enlarged."""

from collections.abc import Iterator, Sequence

import numpy as np
from einops import repeat
from PIL import Image, ImageDraw, ImageFont

from xdyna_train.evaluation_cases import Case

ENLARGED = 4  # nearest neighbour: every pixel is seen as it is
SHOWN_CASES, SHOWN_FRAMES = 10, 4
FPS = 8
TITLES = ("reference", "pose", "truth", "result")
_MARGIN, _LABEL = 6, 22
_GROUND, _INK = (24, 24, 24), (235, 235, 235)


def contact_sheet(cases: Sequence[Case], results: Sequence[np.ndarray]) -> Image.Image:
    """A row for each of the first cases: the reference, then pose, truth and result of some frames.

    results: [F, H, W, 3] float32 in [0, 1] for each case.
    """
    rows = []
    for case, result in list(zip(cases, results, strict=True))[:SHOWN_CASES]:
        shown = np.linspace(0, len(result) - 1, SHOWN_FRAMES).round().astype(int)
        made = to_uint8(result)
        rows.append([case.reference, *(part[k] for k in shown for part in (case.conditions.pose, case.truth, made))])
    return _grid(rows, [TITLES[0], *TITLES[1:] * SHOWN_FRAMES], [case.scene.kind for case in cases])


def side_by_side(cases: Sequence[Case], results: Sequence[np.ndarray], rows: int = 3) -> Iterator[np.ndarray]:
    """The first cases as a video, two beside each other in each of `rows`. Yields [H, W, 3] uint8, sides even."""
    chosen = list(zip(cases, results, strict=True))[: 2 * rows]
    columns = 2 if len(chosen) > 1 else 1
    chosen = chosen[: len(chosen) // columns * columns]
    for k in range(len(chosen[0][1])):
        panels = [
            (case.reference, case.conditions.pose[k], case.truth[k], to_uint8(result[k])) for case, result in chosen
        ]
        lines = [sum(panels[at : at + columns], ()) for at in range(0, len(panels), columns)]
        sheet = np.asarray(_grid([list(line) for line in lines], list(TITLES) * columns, []))
        yield sheet[: sheet.shape[0] // 2 * 2, : sheet.shape[1] // 2 * 2]


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """float32 in [0, 1], clipped to it, to uint8."""
    return (frames * 255).round().clip(0, 255).astype(np.uint8)


def _grid(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], labels: Sequence[str]) -> Image.Image:
    """Pictures [H, W, 3] uint8 of one size in rows, enlarged, under titles; a label at the top of each row's first."""
    height, width = (ENLARGED * side for side in rows[0][0].shape[:2])
    sheet = Image.new(
        "RGB", (_MARGIN + len(titles) * (width + _MARGIN), _LABEL + len(rows) * (height + _MARGIN)), _GROUND
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14.0)
    for column, title in enumerate(titles):
        draw.text((_MARGIN + column * (width + _MARGIN), 3), title, fill=_INK, font=font)
    for row, pictures in enumerate(rows):
        top = _LABEL + row * (height + _MARGIN)
        for column, picture in enumerate(pictures):
            large = repeat(picture, "h w c -> (h a) (w b) c", a=ENLARGED, b=ENLARGED)
            sheet.paste(Image.fromarray(large), (_MARGIN + column * (width + _MARGIN), top))
        if row < len(labels):
            draw.text((_MARGIN + 4, top + 3), labels[row], fill=_INK, font=font, stroke_width=2, stroke_fill=_GROUND)
    return sheet

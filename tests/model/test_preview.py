"""The preview shows every stream, at a size that can be encoded."""

import numpy as np
import pytest
from xdyna_model.preview import GROUND, LABEL_HEIGHT, MARGIN, PANEL_HEIGHT, PANEL_WIDTH, contact_sheet, side_by_side

COLOURS = {"reference": (200, 0, 0), "driving": (0, 200, 0), "result": (0, 0, 200)}


def streams(count: int = 10, height: int = 100, width: int = 48) -> dict[str, np.ndarray]:
    plain = {name: np.full((count, height, width, 3), colour, np.uint8) for name, colour in COLOURS.items()}
    plain["result"][:, :, :, 0] = np.arange(count)[:, None, None]  # frames can be told apart
    return plain | {"reference": plain["reference"][:1]}


def test_panels_from_left_to_right() -> None:
    frames = list(map(np.copy, side_by_side(streams())))
    assert len(frames) == 10
    scale = PANEL_HEIGHT // 100  # small pictures are shown larger, pixel by pixel
    for index, frame in enumerate(frames):
        for column, name in enumerate(COLOURS):
            left = MARGIN + column * (48 * scale + MARGIN)
            panel = frame[LABEL_HEIGHT : LABEL_HEIGHT + 100 * scale, left : left + 48 * scale]
            np.testing.assert_array_equal(
                panel[::scale, ::scale], streams()[name][min(index, len(streams()[name]) - 1)]
            )


def test_every_panel_has_its_title() -> None:
    strip = next(side_by_side(streams(height=300)))[:LABEL_HEIGHT]
    for column in range(3):
        left = MARGIN + column * (48 + MARGIN)
        assert (strip[:, left : left + 48] != GROUND).any()
        assert (strip[:, left + 48 : left + 48 + MARGIN] == GROUND).all()  # and keeps off its neighbour


@pytest.mark.parametrize(("height", "width"), [(64, 48), (65, 47), (1024, 576)])
def test_sides_are_even_and_bounded(height: int, width: int) -> None:
    frame = next(side_by_side(streams(2, height, width)))
    assert frame.shape[0] % 2 == frame.shape[1] % 2 == 0
    assert frame.shape[0] <= PANEL_HEIGHT + LABEL_HEIGHT + MARGIN + 1


@pytest.mark.parametrize(("height", "width"), [(64, 640), (128, 4096)])
def test_wide_panels_are_bounded(height: int, width: int) -> None:
    frame = next(side_by_side(streams(1, height, width)))
    assert frame.shape[1] <= 3 * (PANEL_WIDTH + MARGIN) + MARGIN + 1
    assert frame.shape[0] == LABEL_HEIGHT + MARGIN + min(3 * 64, 2048 * height // width)  # in the video's ratio


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (4, 4), (100, 6)])
def test_contact_sheet_is_evenly_spaced(count: int, columns: int) -> None:
    sheet = np.asarray(contact_sheet(streams(count)))
    row = sheet[LABEL_HEIGHT + 2 * (100 + MARGIN) + 50]  # through the middle of the results
    shown = [int(red) for red, _, blue in row if blue == 200]
    assert shown[::48] == np.linspace(0, count - 1, columns).round().astype(int).tolist()
    assert len(shown) == 48 * columns

"""Shapes in units of the picture's height, kept as a list and painted in one go, supersampled."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, ...]  # (r, g, b) or (r, g, b, a), each 0..255

_ROUND = np.linspace(0.0, 2.0 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ROUND), np.sin(_ROUND)], -1)  # [28, 2]
_HALF = np.linspace(0.0, np.pi, 10)
_STEP = np.linspace(0.0, 1.0, 4, endpoint=False)[:, None]
# Catmull-Rom weights of four neighbouring points at the four steps between the middle two.
_CATMULL = (
    np.concatenate(
        [
            -_STEP + 2 * _STEP**2 - _STEP**3,
            2 - 5 * _STEP**2 + 3 * _STEP**3,
            _STEP + 4 * _STEP**2 - 3 * _STEP**3,
            -(_STEP**2) + _STEP**3,
        ],
        1,
    )
    / 2
)


def xy(right: float, down: float) -> np.ndarray:
    """A place or a shift, [2]."""
    return np.array((right, down), float)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """The colour of a hue (turns, any real), saturation and value in [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return (round(255 * red), round(255 * green), round(255 * blue))


def blend(colour: Colour, other: Colour, amount: float) -> Colour:
    """colour at amount 0, other at amount 1."""
    return tuple(round(a + (b - a) * amount) for a, b in zip(colour[:3], other[:3], strict=True))


def shade(colour: Colour) -> Colour:
    """The same surface turned away from the light."""
    return (round(colour[0] * 0.82), round(colour[1] * 0.78), round(colour[2] * 0.84))


def outline(colour: Colour) -> Colour:
    """A line that belongs to a surface: its own colour, much darker."""
    return (round(colour[0] * 0.5), round(colour[1] * 0.43), round(colour[2] * 0.52))


def supersampling(height: int) -> int:
    """How many times finer than the picture shapes are painted; pictures below 160 rows need it most."""
    return 4 if height < 160 else 3


def smooth(points: np.ndarray) -> np.ndarray:
    """points: [N, 2], a closed outline. Returns [4N, 2], the closed Catmull-Rom curve through them."""
    around = np.arange(len(points))[:, None] + (-1, 0, 1, 2)
    return (_CATMULL @ points[around % len(points)]).reshape(-1, 2)


def smooth_line(points: np.ndarray) -> np.ndarray:
    """points: [N, 2], an open line. Returns [4N - 3, 2], the curve through them."""
    around = np.arange(len(points) - 1)[:, None] + (-1, 0, 1, 2)
    return np.concatenate([(_CATMULL @ points[around.clip(0, len(points) - 1)]).reshape(-1, 2), points[-1:]])


@dataclass(frozen=True)
class Layer:
    """A see-through picture (mode RGBA) and the pixel of a larger one where its top left corner belongs."""

    image: Image.Image
    corner: tuple[int, int]

    def onto(self, picture: Image.Image) -> None:
        """Lays it over picture."""
        picture.paste(self.image, self.corner, self.image)


class Strokes:
    """A list of filled shapes, later ones over earlier ones. x runs from the middle of the picture to the right,
    y from its top downwards; both, and all lengths, in heights of the picture."""

    def __init__(self) -> None:
        self._shapes: list[np.ndarray] = []  # each [N, 2]
        self._fills: list[Colour] = []
        self._widths: list[float] = []  # of lines; 0 for a filled shape
        self._capsules: list[tuple[float, ...]] = []  # made into outlines together, which is what makes them cheap
        self._capsule_slots: list[int] = []

    def polygon(self, points: np.ndarray, fill: Colour) -> None:
        """points: [N, 2]."""
        self._shapes.append(points)
        self._fills.append(fill)
        self._widths.append(0.0)

    def outlined(self, points: np.ndarray, fill: Colour, width: float) -> None:
        """points: [N, 2]; the shape inside a line of its own dark colour, `width` of it visible."""
        self.line(np.concatenate([points, points[:2]]), 2 * width, outline(fill))
        self.polygon(points, fill)

    def ellipse(self, centre: Sequence[float] | np.ndarray, right: float, down: float, fill: Colour) -> None:
        """An upright ellipse with the radii right and down."""
        self.polygon(_CIRCLE * (right, down) + centre, fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """An upright rectangle."""
        self.polygon(np.array([(left, top), (right, top), (right, bottom), (left, bottom)]), fill)

    def capsule(
        self,
        start: Sequence[float] | np.ndarray,
        end: Sequence[float] | np.ndarray,
        radius: float,
        end_radius: float,
        fill: Colour,
    ) -> None:
        """Two discs and what lies between them."""
        self._capsule_slots.append(len(self._shapes))
        self._capsules.append((start[0], start[1], end[0], end[1], radius, end_radius))
        self.polygon(_CIRCLE, fill)

    def line(self, points: np.ndarray, width: float, fill: Colour) -> None:
        """points: [N, 2]; a line through them, blunt at its ends."""
        self._shapes.append(points)
        self._fills.append(fill)
        self._widths.append(width)

    def paint(self, image: Image.Image, scale: float, origin: tuple[float, float]) -> None:
        """Paints the shapes, `scale` pixels to a height, with (0, 0) at the pixel position `origin`. On an image with
        an alpha channel, which must be of mode RGBa, a see-through fill replaces what is below it."""
        if self._shapes:
            self._paint(image, self._outlines() * scale, scale, origin)

    def layer(self, height: int, width: int) -> Layer:
        """The shapes alone, for a picture of height x width pixels: as much of it as they need."""
        if not self._shapes:
            return Layer(Image.new("RGBA", (1, 1)), (0, 0))
        fine = supersampling(height)
        points = self._outlines() * height
        middle, margin = np.array([width / 2, 0.0]), 1 + max(self._widths) * height / 2
        size = np.array([width, height])
        first = np.clip(np.floor(points.min(0) + middle - margin), 0, size - 1).astype(int)
        last = np.clip(np.ceil(points.max(0) + middle + margin), first + 1, size).astype(int)
        # RGBa (premultiplied): Pillow would convert RGBA to it and back at the supersampled size.
        image = Image.new("RGBa", tuple(((last - first) * fine).tolist()))
        x, y = ((middle - first) * fine).tolist()
        self._paint(image, points * fine, height * fine, (x, y))
        return Layer(image.reduce(fine).convert("RGBA"), (int(first[0]), int(first[1])))

    def _outlines(self) -> np.ndarray:
        """The points of all shapes, one after the other, in heights."""
        for slot, shape in zip(self._capsule_slots, _capsule_outlines(self._capsules), strict=True):
            self._shapes[slot] = shape
        return np.concatenate(self._shapes)

    def _paint(self, image: Image.Image, points: np.ndarray, scale: float, origin: tuple[float, float]) -> None:
        flat = np.rint(points + np.subtract(origin, 0.5)).ravel().tolist()
        draw, alpha = ImageDraw.Draw(image), image.mode == "RGBa"
        at = 0
        for shape, fill, width in zip(self._shapes, self._fills, self._widths, strict=True):
            outline_points = flat[at : at + 2 * len(shape)]
            at += 2 * len(shape)
            ink = _premultiplied(fill) if alpha and len(fill) == 4 else fill
            if width:
                draw.line(outline_points, fill=ink, width=max(1, round(width * scale)))
            else:
                draw.polygon(outline_points, fill=ink)


def _premultiplied(fill: Colour) -> Colour:
    return (*(round(part * fill[3] / 255) for part in fill[:3]), fill[3])


def _capsule_outlines(capsules: list[tuple[float, ...]]) -> np.ndarray:
    """Each capsule is (x, y, end x, end y, radius, end radius). Returns [K, 20, 2]."""
    if not capsules:
        return np.zeros((0, 20, 2))
    table = np.array(capsules)
    start, end, radius, end_radius = table[:, None, :2], table[:, None, 2:4], table[:, 4, None], table[:, 5, None]
    along = np.arctan2(table[:, 3] - table[:, 1], table[:, 2] - table[:, 0])[:, None]
    front = along - np.pi / 2 + _HALF  # [K, 10]
    round_end = np.stack([np.cos(front), np.sin(front)], -1)
    tail, head = start - radius[..., None] * round_end, end + end_radius[..., None] * round_end
    return np.concatenate([tail, head], 1)

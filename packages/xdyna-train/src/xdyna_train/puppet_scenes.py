"""The scenes behind the puppets: a still picture, one sheet that drifts at a known speed, a still front."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops

from xdyna_train.puppet_places import PLACES
from xdyna_train.puppet_sheets import SHEETS, falling_fireworks, ripples, swaying_blades
from xdyna_train.puppet_strokes import Layer, Strokes, supersampling

KINDS = ("waterfall", "fireworks", "clouds", "rain", "snow", "ocean", "grass", "stars", "room")

# Velocity (right, down) in heights a frame: one way and one speed for each kind, so that a still picture tells
# how it goes on.
_DRIFTS = {
    "waterfall": (0.0, 0.0205),
    "clouds": (0.0135, 0.0),
    "rain": (-0.003, 0.0215),
    "snow": (0.0036, 0.012),
    "ocean": (-0.0135, 0.0),
    "grass": (0.0145, 0.0),
    "stars": (-0.009, 0.0),
}
DRIFTING = tuple(_DRIFTS)  # the kinds whose velocity is not zero
_SEEN_THROUGH = ("rain", "snow")  # what drifts in them leaves most of what is behind it to be seen


@dataclass(frozen=True)
class Scene:
    """A place without people. kind: one of `KINDS`; seed: of its layout and colours; velocity: (right, down) of what
    drifts in it, in heights of the picture a frame, (0, 0) where nothing does (room) or not one way (fireworks)."""

    kind: str
    seed: int
    velocity: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def sample(cls, kind: str, rng: np.random.Generator) -> "Scene":
        """A scene of that kind drawn from rng. Raises ValueError for a kind that is not in `KINDS`."""
        if kind not in KINDS:
            raise ValueError(f"unknown scene kind {kind!r}; one of {', '.join(KINDS)}")
        seed = int(rng.integers(2**31))
        return cls(kind, seed, _DRIFTS.get(kind, (0.0, 0.0)))

    def flow(self, height: int) -> tuple[float, float]:
        """The velocity in pixels a frame, (right, down), for pictures of that height."""
        return self.velocity[0] * height, self.velocity[1] * height

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Where the drift shows: left, top, right, bottom in pixels; all 0 where nothing drifts."""
        return _backdrop(self, height, width).window

    def drift(self, height: int, width: int) -> np.ndarray:
        """How each pixel drifts, and what is seen through it: [2, height, width, 2] float32, as `velocity`.

        All that the front does not cover of the window counts as drifting, gaps between clouds or stars with it; what
        moves in place, as blades of grass, is left out of account. Behind rain and snow all stands still; elsewhere
        both are the same."""
        backdrop = _backdrop(self, height, width)
        left, top, right, bottom = backdrop.window
        drifts = np.zeros((height, width), bool)
        drifts[top:bottom, left:right] = True
        if backdrop.front is not None:
            cover = Image.new("L", (width, height))
            cover.paste(backdrop.front.image.getchannel("A"), backdrop.front.corner)
            drifts &= np.asarray(cover) < 128
        both = np.stack([drifts, drifts & (self.kind not in _SEEN_THROUGH)])
        return both[..., None] * np.array(self.velocity, np.float32)

    def render(self, t: float, height: int, width: int) -> Image.Image:
        """The scene at time t (frames, any real number): RGB, width x height."""
        return _backdrop(self, height, width).at(t)


@dataclass
class _Sheet:
    """A picture that repeats in both directions and drifts, kept supersampled so that it moves in parts of a pixel."""

    fine: Image.Image
    step: int
    phases: dict[tuple[int, int], Image.Image]

    def shifted(self, right: float, down: float) -> Image.Image:
        """The sheet moved by so many pixels."""
        whole_x, part_x = divmod(round(right * self.step), self.step)
        whole_y, part_y = divmod(round(down * self.step), self.step)
        if (part_x, part_y) not in self.phases:
            moved = ImageChops.offset(self.fine, part_x, part_y)
            self.phases[part_x, part_y] = moved.reduce(self.step).convert("RGBA")
        return ImageChops.offset(self.phases[part_x, part_y], whole_x, whole_y)


@dataclass
class _Backdrop:
    """A scene made ready for one size."""

    back: Image.Image
    sheet: _Sheet | None
    window: tuple[int, int, int, int]
    flow: tuple[float, float]
    live: Callable[[float], Strokes] | None
    front: Layer | None

    def at(self, t: float) -> Image.Image:
        picture = self.back.copy()
        width, height = picture.size
        if self.sheet is not None:
            left, top, right, bottom = self.window
            moved = self.sheet.shifted(self.flow[0] * t, self.flow[1] * t).crop((0, 0, right - left, bottom - top))
            picture.paste(moved, (left, top), moved)
        if self.live is not None:
            self.live(t).layer(height, width).onto(picture)
        if self.front is not None:
            self.front.onto(picture)
        return picture


@lru_cache(maxsize=4)
def _backdrop(scene: Scene, height: int, width: int) -> _Backdrop:
    rng = np.random.default_rng(scene.seed)
    place = PLACES[scene.kind](rng, width / height / 2)
    fine = supersampling(height)
    column = np.linspace(0, 1, height * fine)
    stops = np.array(place.gradient, float)  # [S, 4]: level, r, g, b
    sky = np.stack([np.interp(column, stops[:, 0], stops[:, k]) for k in (1, 2, 3)], -1)
    back = Image.fromarray(np.rint(sky).astype(np.uint8)[:, None].repeat(width * fine, 1))
    place.back.paint(back, height * fine, (width * fine / 2, 0.0))
    back = back.reduce(fine)
    for x, y, radius, colour, strength in place.glows:
        back = _glow(back, (width / 2 + x * height, y * height), radius * height, colour, strength)
    front = place.front.layer(height, width) if place.front is not None else None
    sheet, window = None, (0, 0, 0, 0)
    if scene.kind in SHEETS:
        left, top, right, bottom = place.window
        window = (
            max(0, round(width / 2 + left * height)),
            round(top * height),
            min(width, round(width / 2 + right * height)),
            round(bottom * height),
        )
        across, down = max(round(1.25 * height), width), window[3] - window[1]
        strokes = SHEETS[scene.kind](rng, across / height, down / height)
        canvas = Image.new("RGBa", (across * fine, down * fine))
        strokes.paint(canvas, height * fine, (0.0, 0.0))
        sheet = _Sheet(canvas, fine, {})
    live = None
    if scene.kind == "fireworks":
        live = falling_fireworks(rng, width / height / 2)
    elif scene.kind == "rain":
        live = ripples(rng, width / height / 2)
    elif scene.kind == "grass":
        live = swaying_blades(rng, width / height / 2, scene.velocity[0])
    return _Backdrop(back, sheet, window, scene.flow(height), live, front)


def _glow(
    picture: Image.Image, centre: tuple[float, float], radius: float, colour: tuple[int, ...], strength: float
) -> Image.Image:
    """Lightens towards colour around centre (pixels), fading out over radius."""
    pixels = np.asarray(picture, np.float32)
    y, x = np.ogrid[: pixels.shape[0], : pixels.shape[1]]
    weight = strength * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (0.5 * radius**2))[..., None]
    return Image.fromarray(np.rint(pixels + (np.array(colour, np.float32) - pixels) * weight).astype(np.uint8))

"""What stands still in the scenes: skies, hills, rocks, streets and rooms."""

from dataclasses import dataclass, field

import numpy as np

from xdyna_train.puppet_props import bush, city, paving, pine, plant, ridge, tree, window
from xdyna_train.puppet_strokes import Colour, Strokes, blend, hsv, shade, smooth


@dataclass
class Place:
    """gradient: the sky or wall as (level 0..1, r, g, b), downwards. glows: (x, y, radius in heights, colour,
    strength 0..1). window: left, top, right, bottom in heights of what drifts between back and front."""

    gradient: list[tuple[float, ...]]
    back: Strokes = field(default_factory=Strokes)
    glows: list[tuple[float, float, float, Colour, float]] = field(default_factory=list)
    front: Strokes | None = None
    window: tuple[float, float, float, float] = (-9.0, 0.0, 9.0, 1.0)


def _clouds(rng: np.random.Generator, half: float) -> Place:
    """A meadow below a wide sky."""
    hue = rng.uniform(0.54, 0.6)
    low = hsv(hue, 0.16, 1.0)
    place = Place([(0, *hsv(hue + 0.02, 0.6, 0.93)), (0.62, *low), (1, *low)], window=(-9, 0.0, 9, 0.6))
    place.glows.append((rng.uniform(-0.6, 0.6) * half, 0.12, 0.3, (255, 248, 214), 0.75))
    front, meadow = Strokes(), rng.uniform(0.22, 0.34)
    for level, rise, green in ((0.6, 0.03, 0.28), (0.66, 0.025, 0.42), (0.74, 0.015, 0.52)):
        colour = blend(hsv(meadow, green + 0.06, 0.84 - 0.25 * green), low, 0.45 - 0.75 * (level - 0.58))
        hills = ridge(rng, half, level, rise, 9.0)
        front.polygon(hills, colour)
        if level < 0.7:
            for spot in rng.choice(36, 4, replace=False):
                tree(front, (hills[spot, 0], hills[spot, 1] + 0.012), rng.uniform(0.04, 0.065), shade(shade(colour)))
    grass = hsv(meadow, 0.56, 0.6)
    for _ in range(34):
        x, y = rng.uniform(-half, half), rng.uniform(0.78, 0.99)
        blade = np.array(
            [(x - 0.008, y), (x - 0.012, y - 0.016), (x, y - 0.003), (x + 0.002, y - 0.02), (x + 0.008, y)]
        )
        front.polygon(blade, grass)
    place.front = front
    return place


def _waterfall(rng: np.random.Generator, half: float) -> Place:
    """Water between mossy cliffs, a pool, a bank."""
    middle = rng.uniform(-0.04, 0.04)
    wide = rng.uniform(0.6, 0.74) * half
    place = Place(
        [(0, 188, 220, 226), (0.3, 150, 190, 196), (1, 70, 110, 120)], window=(middle - wide, 0.06, middle + wide, 0.76)
    )
    place.back.box(middle - wide - 0.05, 0.05, middle + wide + 0.05, 0.8, (140, 192, 220))
    front = Strokes()
    _cliffs(rng, front, half, middle, wide)
    front.ellipse((middle, 0.79), wide + 0.14, 0.075, (86, 152, 186))
    front.ellipse((middle, 0.775), wide + 0.08, 0.045, (140, 194, 218))
    for x in np.linspace(-1, 1, round(47 * wide)):
        radius = 0.024 + 0.016 * rng.random()
        front.ellipse(
            (middle + x * (wide + 0.01), 0.762 + 0.008 * rng.random()), 1.3 * radius, radius, (236, 247, 252, 215)
        )
    moss = hsv(rng.uniform(0.22, 0.34), 0.5, 0.5)
    front.polygon(ridge(rng, half, 0.84, 0.008, 14.0), moss)
    front.polygon(ridge(rng, half, 0.9, 0.008, 10.0), blend(moss, (255, 240, 170), 0.14))
    place.front = front
    return place


def _cliffs(rng: np.random.Generator, front: Strokes, half: float, middle: float, wide: float) -> None:
    """Heaped rocks with bushes on both sides of the water."""
    hue = rng.uniform(0.08, 0.62)
    stone = hsv(hue, 0.16, 0.5)
    for sign in (-1, 1):
        for row in range(9):
            y = 0.02 + 0.09 * row
            inner = middle + sign * (wide - 0.012 + 0.028 * rng.random() - 0.015 * (row % 2))
            colour = blend(stone, hsv(hue, 0.2, 0.3), rng.uniform(0, 0.7))
            rock = [
                (inner, y),
                (inner + sign * 0.012, y + 0.1),
                (sign * (half + 0.1), y + 0.13),
                (sign * (half + 0.1), y - 0.03),
            ]
            shape = smooth(np.array(rock))
            front.outlined(shape, colour, 0.003)
            front.line(
                np.array([(inner + sign * 0.02, y + 0.018), (inner + sign * 0.11, y + 0.008)]),
                0.006,
                blend(colour, (255, 255, 255), 0.2),
            )
        for _ in range(7):
            x, y = middle + sign * rng.uniform(wide + 0.03, half + 0.03), rng.uniform(0.0, 0.62)
            bush(front, x, y, rng.uniform(0.025, 0.05), hsv(rng.uniform(0.24, 0.38), 0.5, rng.uniform(0.42, 0.6)))


def _fireworks(rng: np.random.Generator, half: float) -> Place:
    """A town square at night."""
    hue = rng.uniform(0.6, 0.76)
    place = Place(
        [
            (0, *hsv(hue, 0.72, 0.16)),
            (0.55, *hsv(hue + 0.03, 0.6, 0.36)),
            (0.72, *hsv(hue + 0.12, 0.5, 0.5)),
            (1, 40, 34, 60),
        ]
    )
    for _ in range(40):
        size = rng.uniform(0.0012, 0.0026)
        place.back.ellipse((rng.uniform(-half, half), rng.uniform(0, 0.5)), size, size, (226, 226, 246))
    front = Strokes()
    city(front, rng, half, 0.74, 0.2, hsv(hue, 0.45, 0.26), (255, 214, 128))
    ground = hsv(hue + 0.04, 0.32, 0.36)
    front.polygon(ridge(rng, half, 0.74, 0.0, 1.0), ground)
    paving(front, half, 0.74, blend(ground, (0, 0, 0), 0.18))
    place.front = front
    return place


def _rain(rng: np.random.Generator, half: float) -> Place:
    """A wet street in the evening."""
    hue = rng.uniform(0.56, 0.66)
    wall = hsv(hue, 0.36, 0.36)
    place = Place([(0, *hsv(hue, 0.38, 0.34)), (0.5, *hsv(hue, 0.26, 0.56)), (1, *hsv(hue, 0.26, 0.5))])
    city(place.back, rng, half, 0.7, 0.42, blend(wall, hsv(hue, 0.25, 0.55), 0.5), (236, 206, 150))
    city(place.back, rng, half, 0.74, 0.27, wall, (255, 204, 120))
    ground = hsv(hue, 0.3, 0.34)
    place.back.polygon(ridge(rng, half, 0.74, 0.0, 1.0), ground)
    place.back.box(-half - 0.05, 0.735, half + 0.05, 0.752, blend(ground, (255, 255, 255), 0.25))
    for _ in range(9):
        x, y = rng.uniform(-half, half), rng.uniform(0.8, 0.98)
        place.back.ellipse(
            (x, y), rng.uniform(0.05, 0.1), 0.011 + 0.05 * (y - 0.8), blend(ground, (150, 180, 220), 0.25)
        )
    for sign in (-1, 1):
        x = sign * 0.82 * half
        place.back.capsule((x, 0.76), (x, 0.3), 0.007, 0.005, (38, 42, 56))
        place.back.ellipse((x, 0.285), 0.02, 0.026, (255, 236, 178))
        place.glows.append((x, 0.285, 0.13, (255, 220, 150), 0.6))
        place.glows.append((x, 0.84, 0.07, (255, 220, 150), 0.3))
    return place


def _ocean(rng: np.random.Generator, half: float) -> Place:
    """A beach; the sun stands over the water."""
    evening = rng.random() < 0.5
    high = (92, 158, 222) if not evening else (116, 112, 184)
    low = (222, 240, 250) if not evening else (255, 202, 150)
    place = Place([(0, *high), (0.46, *low), (1, *low)], window=(-9, 0.44, 9, 0.8))
    x, sun = rng.uniform(-0.5, 0.5) * half, (255, 246, 206) if not evening else (255, 226, 150)
    place.back.ellipse((x, 0.3), 0.055, 0.055, sun)
    place.glows.append((x, 0.3, 0.3, sun, 0.55))
    island = blend(high, low, 0.4)
    place.back.polygon(ridge(rng, 0.6 * half, 0.45, 0.02, 8.0), shade(island))
    place.back.box(-half - 0.05, 0.46, half + 0.05, 0.8, hsv(0.54, 0.5, 0.8))
    front, sand = Strokes(), (240, 214, 164) if not evening else (226, 184, 144)
    front.polygon(ridge(rng, half, 0.782, 0.009, 11.0), (244, 250, 252))
    front.polygon(ridge(rng, half, 0.795, 0.007, 11.0), shade(sand))
    front.polygon(ridge(rng, half, 0.835, 0.006, 9.0), sand)
    for _ in range(26):
        size = rng.uniform(0.002, 0.005)
        front.ellipse((rng.uniform(-half, half), rng.uniform(0.86, 0.99)), 1.5 * size, size, shade(sand))
    place.front = front
    return place


def _snow(rng: np.random.Generator, half: float) -> Place:
    """Hills and pines in winter."""
    hue = rng.uniform(0.56, 0.68)
    place = Place([(0, *hsv(hue, 0.5, 0.52)), (0.6, *hsv(hue, 0.24, 0.8)), (1, *hsv(hue, 0.1, 0.9))])
    place.back.polygon(ridge(rng, half, 0.5, 0.06, 8.0), hsv(hue, 0.3, 0.74))
    for level, count, size, green in ((0.62, 9, 0.15, 0.3), (0.7, 6, 0.24, 0.0)):
        hills = ridge(rng, half, level, 0.02, 7.0)
        place.back.polygon(hills, hsv(hue, 0.14 - 0.1 * (level - 0.6), 0.86 + 0.9 * (level - 0.62)))
        for x in np.linspace(-half, half, count) + rng.uniform(-0.02, 0.02, count):
            y = float(np.interp(x, hills[:40, 0], hills[:40, 1])) + 0.02
            colour = blend(hsv(0.42, 0.45, 0.42), hsv(hue, 0.24, 0.7), green)
            pine(place.back, (x, y), size * rng.uniform(0.8, 1.15), colour, snow=True)
    place.back.polygon(ridge(rng, half, 0.78, 0.012, 8.0), hsv(hue, 0.06, 0.95))
    place.back.polygon(ridge(rng, half, 0.88, 0.008, 6.0), (246, 249, 254))
    return place


def _room(rng: np.random.Generator, half: float) -> Place:
    """A plain room: wall, floor, a window or a picture, a plant, a rug. Nothing moves."""
    hue = rng.random()
    wall = hsv(hue, rng.uniform(0.08, 0.28), rng.uniform(0.78, 0.95))
    wood = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.25, 0.5), rng.uniform(0.55, 0.8))
    place = Place([(0, *blend(wall, (255, 255, 255), 0.2)), (0.74, *wall), (1, *wall)])
    back = place.back
    side = 1.0 if rng.random() < 0.5 else -1.0
    window(back, side * 0.6 * half, 0.24, min(0.1, 0.33 * half))
    frame_x = -side * 0.64 * half
    art = hsv(hue + 0.4, 0.45, 0.85)
    back.box(frame_x - 0.066, 0.15, frame_x + 0.066, 0.31, shade(wood))
    back.box(frame_x - 0.055, 0.161, frame_x + 0.055, 0.299, (248, 244, 236))
    back.ellipse((frame_x - 0.015, 0.215), 0.026, 0.026, art)
    back.polygon(np.array([(frame_x - 0.045, 0.285), (frame_x + 0.012, 0.225), (frame_x + 0.045, 0.285)]), shade(art))
    back.box(-half - 0.05, 0.74, half + 0.05, 1.05, wood)
    paving(back, half, 0.74, shade(wood))
    back.box(-half - 0.05, 0.715, half + 0.05, 0.745, blend(wall, (255, 255, 255), 0.6))
    back.box(-half - 0.05, 0.742, half + 0.05, 0.747, shade(shade(wood)))
    rug = hsv(hue + 0.5, 0.4, 0.78)
    back.ellipse((0.0, 0.925), 0.235, 0.05, shade(rug))
    back.ellipse((0.0, 0.922), 0.225, 0.045, rug)
    back.ellipse((0.0, 0.922), 0.175, 0.033, blend(rug, (255, 255, 255), 0.35))
    plant(back, -side * 0.78 * half, 0.8, hsv(rng.random(), 0.4, 0.8))
    return place


PLACES = {
    "waterfall": _waterfall,
    "fireworks": _fireworks,
    "clouds": _clouds,
    "rain": _rain,
    "ocean": _ocean,
    "snow": _snow,
    "room": _room,
}

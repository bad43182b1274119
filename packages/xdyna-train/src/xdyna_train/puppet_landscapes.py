"""Places out in the country: skies, hills, rocks and water."""

import numpy as np

from xdyna_train.puppet_props import Place, bush, pine, ridge, tree
from xdyna_train.puppet_strokes import Strokes, blend, hsv, shade, smooth


def clouds(rng: np.random.Generator, half: float) -> Place:
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


def waterfall(rng: np.random.Generator, half: float) -> Place:
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


def ocean(rng: np.random.Generator, half: float) -> Place:
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


def snow(rng: np.random.Generator, half: float) -> Place:
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


def grass(rng: np.random.Generator, half: float) -> Place:
    """A wide meadow; the wind runs over it in gusts."""
    hue, meadow = rng.uniform(0.52, 0.58), rng.uniform(0.2, 0.33)
    low = hsv(hue, 0.14, 0.99)
    place = Place([(0, *hsv(hue, 0.45, 0.95)), (0.3, *low), (1, *low)], window=(-9, 0.36, 9, 0.86))
    place.back.polygon(ridge(rng, half, 0.32, 0.03, 7.0), blend(hsv(meadow + 0.06, 0.4, 0.72), low, 0.4))
    for spot in rng.uniform(-half, half, 4).tolist():
        tree(place.back, (spot, 0.36), rng.uniform(0.05, 0.08), hsv(meadow + 0.05, 0.5, 0.5))
    for level, value in ((0.36, 0.74), (0.5, 0.68), (0.68, 0.62)):
        place.back.polygon(ridge(rng, half, level, 0.006, 6.0), hsv(meadow, 0.52, value))
    return place


def stars(rng: np.random.Generator, half: float) -> Place:
    """Dark hills below a clear night sky."""
    hue = rng.uniform(0.6, 0.7)
    place = Place(
        [(0, *hsv(hue, 0.8, 0.2)), (0.6, *hsv(hue + 0.03, 0.62, 0.4)), (0.8, *hsv(hue + 0.08, 0.45, 0.55))],
        window=(-9, 0.0, 9, 0.74),
    )
    front = Strokes()
    for level, rise, value in ((0.68, 0.03, 0.3), (0.76, 0.02, 0.24), (0.86, 0.012, 0.19)):
        hills = ridge(rng, half, level, rise, 8.0)
        front.polygon(hills, hsv(hue - 0.08, 0.42, value))
        if level < 0.8:
            for spot in rng.choice(36, 3, replace=False):
                size = rng.uniform(0.06, 0.11)
                pine(front, (hills[spot, 0], hills[spot, 1] + 0.015), size, hsv(hue - 0.1, 0.45, value), snow=False)
    place.front = front
    return place

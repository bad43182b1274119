"""What scenes are made of, and the things that stand about in them. Lengths in heights of the picture."""

from dataclasses import dataclass, field

import numpy as np

from xdyna_train.puppet_strokes import Colour, Strokes, blend, hsv, outline, shade, smooth


@dataclass
class Place:
    """gradient: the sky or wall as (level 0..1, r, g, b), downwards. glows: (x, y, radius in heights, colour,
    strength 0..1). window: left, top, right, bottom in heights of what drifts between back and front."""

    gradient: list[tuple[float, ...]]
    back: Strokes = field(default_factory=Strokes)
    glows: list[tuple[float, float, float, Colour, float]] = field(default_factory=list)
    front: Strokes | None = None
    window: tuple[float, float, float, float] = (-9.0, 0.0, 9.0, 1.0)


def ridge(rng: np.random.Generator, half: float, level: float, rise: float, waves: float) -> np.ndarray:
    """A hilly line closed along the bottom of the picture, [N, 2]."""
    x = np.linspace(-half - 0.05, half + 0.05, 40)
    phase = rng.uniform(0, 6.3, 2)
    y = level - rise * (0.6 * np.sin(waves * x + phase[0]) + 0.4 * np.sin(2.3 * waves * x + phase[1]))
    return np.concatenate([np.stack([x, y], -1), [(half + 0.05, 1.05), (-half - 0.05, 1.05)]])


def tree(strokes: Strokes, foot: tuple[float, float], size: float, green: Colour) -> None:
    """A leafy tree of that height."""
    x, y = foot
    strokes.capsule((x, y), (x, y - size), 0.09 * size, 0.06 * size, (104, 74, 58))
    for dx, dy, radius in ((-0.3, -1.1, 0.42), (0.32, -1.15, 0.4), (0.0, -1.45, 0.48)):
        strokes.ellipse((x + dx * size, y + dy * size), radius * size, radius * size, shade(green))
    for dx, dy, radius in ((-0.36, -1.18, 0.32), (0.24, -1.25, 0.3), (-0.06, -1.52, 0.38)):
        strokes.ellipse((x + dx * size, y + dy * size), radius * size, radius * size, green)


def pine(strokes: Strokes, foot: tuple[float, float], size: float, green: Colour, snow: bool) -> None:
    """A pine of that height."""
    x, y = foot
    strokes.box(x - 0.05 * size, y - 0.2 * size, x + 0.05 * size, y, (92, 66, 56))
    for step in range(3):
        base, half = y - (0.15 + 0.27 * step) * size, (0.36 - 0.08 * step) * size
        tip = base - 0.45 * size
        strokes.polygon(np.array([(x - half, base), (x, tip), (x + half, base)]), green)
        strokes.polygon(np.array([(x + 0.15 * half, base), (x, tip), (x + half, base)]), shade(green))
        if snow:
            peak = [(x - 0.5 * half, base - 0.22 * size), (x, tip), (x + 0.5 * half, base - 0.22 * size)]
            strokes.polygon(np.array([*peak, (x + 0.12 * half, base - 0.17 * size)]), (244, 248, 254))


def bush(strokes: Strokes, x: float, y: float, size: float, green: Colour) -> None:
    """A bush of that radius."""
    for dx, dy, radius, fill in (
        (-0.6, 0.1, 0.75, shade(green)),
        (0.7, 0.15, 0.7, shade(green)),
        (0, -0.2, 0.9, green),
    ):
        strokes.ellipse((x + dx * size, y + dy * size), radius * size, radius * size, fill)


def city(
    strokes: Strokes, rng: np.random.Generator, half: float, level: float, tall: float, wall: Colour, lit: Colour
) -> None:
    """Houses on a line, some windows lit."""
    x = -half - 0.03
    while x < half:
        wide, high = rng.uniform(0.06, 0.12), tall * rng.uniform(0.45, 1.0)
        colour = blend(wall, (0, 0, 0), rng.uniform(0, 0.25))
        strokes.box(x, level - high, x + wide, level + 0.02, colour)
        for column in np.arange(x + 0.014, x + wide - 0.018, 0.024).tolist():
            for row in np.arange(level - high + 0.02, level - 0.03, 0.032).tolist():
                if rng.random() < 0.45:
                    strokes.box(column, row, column + 0.012, row + 0.017, blend(colour, lit, rng.uniform(0.4, 1)))
        x += wide + 0.004


def paving(strokes: Strokes, half: float, top: float, colour: Colour) -> None:
    """Lines that run together far away."""
    for x in np.linspace(-2.4, 2.4, 17):
        strokes.line(np.array([(x * 0.3, top), (x, 1.02)]), 0.003, colour)
    for level in (0.06, 0.18, 0.4, 0.72):
        y = top + (1 - top) * level
        strokes.line(np.array([(-half - 0.05, y), (half + 0.05, y)]), 0.002 + 0.003 * level, colour)


def window(strokes: Strokes, x: float, y: float, half: float) -> None:
    """A window; x, y: its middle, half: half its width."""
    white = (250, 248, 244)
    strokes.box(x - half - 0.014, y - 0.145, x + half + 0.014, y + 0.145, outline(outline(white)))
    strokes.box(x - half - 0.012, y - 0.143, x + half + 0.012, y + 0.143, white)
    strokes.box(x - half, y - 0.13, x + half, y + 0.13, (176, 218, 244))
    strokes.ellipse((x + 0.3 * half, y - 0.05), 0.03, 0.016, (250, 252, 255))
    strokes.ellipse((x + 0.1 * half, y - 0.045), 0.022, 0.012, (250, 252, 255))
    strokes.box(x - half, y + 0.08, x + half, y + 0.13, (142, 190, 120))
    strokes.box(x - 0.005, y - 0.13, x + 0.005, y + 0.13, white)
    strokes.box(x - half, y - 0.005, x + half, y + 0.005, white)
    strokes.box(x - half - 0.026, y + 0.14, x + half + 0.026, y + 0.156, shade(white))


def plant(strokes: Strokes, x: float, y: float, pot: Colour) -> None:
    """A pot plant; x, y: the ground in its middle."""
    for lean in (-0.7, 0.7, -0.35, 0.35, 0.0):
        tip = np.array([x + 0.085 * np.sin(lean), y - 0.07 - 0.15 * np.cos(lean)])
        middle = (np.array([x, y - 0.05]) + tip) / 2
        aside = np.array([np.cos(lean), np.sin(lean)]) * 0.022
        leaf = smooth(np.array([(x, y - 0.04), middle + aside, tip, middle - aside]))
        strokes.outlined(leaf, hsv(0.36, 0.5, 0.5 + 0.12 * np.cos(3 * lean)), 0.002)
    strokes.outlined(
        np.array([(x - 0.045, y - 0.065), (x + 0.045, y - 0.065), (x + 0.034, y + 0.03), (x - 0.034, y + 0.03)]),
        pot,
        0.003,
    )
    strokes.box(x + 0.02, y - 0.065, x + 0.04, y + 0.028, shade(pot))

"""What moves in the scenes: sheets that repeat and drift, and shapes that live in time."""

from collections.abc import Callable

import numpy as np

from xdyna_train.puppet_strokes import Colour, Strokes, hsv, xy

Live = Callable[[float], Strokes]


def _clouds(rng: np.random.Generator, across: float, down: float) -> Strokes:
    """Heaped clouds. across, down: size of the sheet in heights; what leaves it on one side returns on the other."""
    strokes = Strokes()
    count = 7
    for k, y in enumerate(np.linspace(0.1, 0.92, count)):
        size = rng.uniform(0.75, 1.15) * (0.115 - 0.055 * y)
        x = across * ((k * 0.382 + rng.uniform(-0.05, 0.05)) % 1.0)
        lumps = [
            (dx, rng.uniform(-0.9, -0.35) * (1.1 - abs(dx) / 2), rng.uniform(0.55, 0.85))
            for dx in (-1.1, -0.3, 0.5, 1.2)
        ]
        for shift in (-across, 0.0, across):
            centre = np.array([x + shift, y * down])
            for lower, fill in ((0.18, (206, 218, 236, 255)), (0.0, (252, 253, 255, 255))):
                for dx, dy, radius in lumps:
                    strokes.ellipse(centre + xy(dx * size, (dy + lower) * size), radius * size, radius * size, fill)
                base = (1.7 - lower) * size
                strokes.capsule(
                    centre + xy(-base, lower * size), centre + xy(base, lower * size), 0.45 * size, 0.45 * size, fill
                )
    return strokes


def _waterfall(rng: np.random.Generator, across: float, down: float) -> Strokes:
    """Streaks of falling water, light and deep."""
    strokes = Strokes()
    tones: list[Colour] = [(232, 246, 252, 255), (166, 208, 230, 255), (112, 172, 208, 255), (250, 254, 255, 255)]
    for k in range(round(150 * across * down)):
        x, y = rng.uniform(0, across), rng.uniform(0, down)
        length, radius = rng.uniform(0.06, 0.2), rng.uniform(0.006, 0.019)
        tone = tones[k % 4]
        for shift in (-down, 0.0):
            strokes.capsule((x, y + shift), (x, y + shift + length), 0.5 * radius, radius, tone)
    return strokes


def _rain(rng: np.random.Generator, across: float, down: float) -> Strokes:
    strokes = Strokes()
    for k in range(round(75 * across * down)):
        x, y = rng.uniform(0, across), rng.uniform(0, down)
        near = k % 3 == 0
        length = rng.uniform(0.06, 0.1) if near else rng.uniform(0.03, 0.06)
        radius, fill = (0.0034, (214, 228, 246, 235)) if near else (0.0022, (168, 188, 216, 190))
        for shift in (-down, 0.0):
            for side in (0.0, across):
                start = (x + side, y + shift)
                strokes.capsule(start, (start[0] - 0.14 * length, start[1] + length), 0.4 * radius, radius, fill)
    return strokes


def _snow(rng: np.random.Generator, across: float, down: float) -> Strokes:
    strokes = Strokes()
    for k in range(round(105 * across * down)):
        x, y = rng.uniform(0, across), rng.uniform(0, down)
        near = k % 3 == 0
        radius = rng.uniform(0.008, 0.013) if near else rng.uniform(0.004, 0.007)
        fill = (255, 255, 255, 255) if near else (226, 234, 248, 235)
        for shift_y in (-down, 0.0, down):
            for shift_x in (-across, 0.0, across):
                strokes.ellipse((x + shift_x, y + shift_y), radius, radius, fill)
    return strokes


def _ocean(rng: np.random.Generator, across: float, down: float) -> Strokes:
    """Rows of waves, the near ones lower in the picture and larger; all drift together."""
    strokes = Strokes()
    hue = rng.uniform(0.52, 0.58)
    rows = 5
    for row, level in enumerate((np.arange(rows) / rows) ** 1.25):
        near = (row + 1) / rows
        top, count = 0.02 + down * level, max(3, round(across / (0.11 + 0.17 * near)))
        edges = np.arange(count) + np.concatenate([[0], rng.uniform(-0.25, 0.25, count - 1)])
        edges = np.append(edges, count) / count * across  # uneven waves, [count + 1]
        x = np.linspace(0, across, 24 * count + 1)
        wave = np.interp(x, edges, np.arange(count + 1.0))
        height = rng.uniform(0.55, 1.0, count)[np.minimum(wave.astype(int), count - 1)]
        crest = top - (0.012 + 0.03 * near) * height * np.abs(np.sin(np.pi * wave)) ** 1.4
        body = np.stack([x, crest], -1)
        below = np.array([(across, down + 0.1), (0, down + 0.1)])
        colour = hsv(hue + 0.02 * near, 0.5 + 0.2 * near, 0.86 - 0.36 * near)
        strokes.polygon(np.concatenate([body, below]), (*colour, 255))
        light = hsv(hue, 0.22, 0.97)
        foam = np.concatenate([body, (body + xy(0, 0.004 + 0.007 * near))[::-1]])
        strokes.polygon(foam, (*light, 255))
        for k in range(count):
            glint = np.interp(k + rng.uniform(0.3, 0.6), np.arange(count + 1.0), edges)
            y = top + (0.012 + 0.022 * near)
            half = 0.02 + 0.03 * near
            strokes.capsule(
                (glint, y), (min(glint + half, across - 0.01), y), 0.002, 0.003, (*hsv(hue, 0.4, 0.85), 255)
            )
    return strokes


SHEETS = {"clouds": _clouds, "waterfall": _waterfall, "rain": _rain, "snow": _snow, "ocean": _ocean}


def falling_fireworks(rng: np.random.Generator, half: float) -> Live:
    """Rockets that burst one after another for ever. half: half the picture's width in heights."""
    period, count = 24.0, 7
    hues, wide = rng.random(count), rng.uniform(0.17, 0.25, count)
    x = (np.linspace(-0.8, 0.8, count)[rng.permutation(count)] + rng.uniform(-0.1, 0.1, count)) * half
    y, turn = rng.uniform(0.13, 0.36, count), rng.uniform(0, 6.3, count)
    start = np.arange(count) * period / count + rng.uniform(0, 2, count)

    def at(t: float) -> Strokes:
        strokes = Strokes()
        for k in range(count):
            age = (t - start[k]) % period
            if age < 4:  # the rocket climbs
                tip = np.array([x[k], 0.72 + (y[k] - 0.72) * (age / 4) ** 0.8])
                strokes.capsule(tip + xy(0, 0.05), tip, 0.001, 0.005, (*hsv(hues[k], 0.25, 1.0), 220))
            elif age < 17:
                _burst(strokes, np.array([x[k], y[k]]), age - 4, hues[k], wide[k], turn[k])
        return strokes

    return at


def _burst(strokes: Strokes, centre: np.ndarray, age: float, hue: float, wide: float, turn: float) -> None:
    """age: 0 to 13 frames; the sparks fly out fast, slow down, sink and go out."""
    reach = wide * (1 - np.exp(-(age + 0.6) / 4))
    tail = wide * (1 - np.exp(-max(age - 2.4, 0.0) / 3.8))
    fade = float(np.clip(1.3 - age / 10, 0, 1))
    if age < 5:
        strokes.ellipse(centre, 0.6 * reach, 0.6 * reach, (*hsv(hue, 0.5, 1.0), round(46 * (1 - age / 5))))
    sink = np.array([0.0, 0.0006 * age**2])
    for ring, spokes, shift in ((1.0, 14, 0.0), (0.58, 9, 0.08)):
        for spoke in turn + np.arange(spokes) * 2 * np.pi / spokes:
            way = np.array([np.cos(spoke), np.sin(spoke)]) * ring
            colour = hsv(hue + shift, 0.55, 1.0)
            inner, outer = centre + tail * way + 0.9 * sink, centre + reach * way + sink
            strokes.capsule(inner, outer, 0.001, 0.0048, (*colour, round(255 * fade)))
            strokes.ellipse(outer, 0.0075 * fade, 0.0075 * fade, (*hsv(hue + shift, 0.15, 1.0), round(255 * fade)))


def ripples(rng: np.random.Generator, half: float) -> Live:
    """Rings on wet ground. half: half the picture's width in heights."""
    count, period = 14, 9.0
    x, y = rng.uniform(-half, half, count), rng.uniform(0.8, 0.985, count)
    start = rng.uniform(0, period, count)

    def at(t: float) -> Strokes:
        strokes = Strokes()
        for k in range(count):
            age = ((t - start[k]) % period) / period
            size = (0.008 + 0.035 * age) * (0.6 + 2.5 * (y[k] - 0.8))
            angle = np.linspace(0, 2 * np.pi, 25)
            ring = np.stack([np.cos(angle), 0.32 * np.sin(angle)], -1) * size + (x[k], y[k])
            strokes.line(ring, 0.003, (186, 204, 230, round(190 * (1 - age))))
        return strokes

    return at

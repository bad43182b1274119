"""What moves in the scenes: sheets that repeat and drift, and shapes that live in time."""

from collections.abc import Callable

import numpy as np

from xdyna_train.puppet_strokes import Colour, Strokes, hsv, smooth, xy

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
    """Broad gushes of falling water, light and deep."""
    strokes = Strokes()
    tones: list[Colour] = [(232, 246, 252, 255), (150, 198, 224, 255), (98, 160, 200, 255), (250, 254, 255, 255)]
    for k in range(round(130 * across * down)):
        x, y = rng.uniform(0, across), rng.uniform(0, down)
        length, radius = rng.uniform(0.05, 0.13), rng.uniform(0.014, 0.027)
        for shift in (-down, 0.0):
            strokes.capsule((x, y + shift), (x, y + shift + length), 0.5 * radius, radius, tones[k % 4])
    return strokes


def _rain(rng: np.random.Generator, across: float, down: float) -> Strokes:
    """Heavy drops, short and thick, so that both their ends show how fast they fall."""
    strokes = Strokes()
    for k in range(round(34 * across * down)):
        x, y = rng.uniform(0, across), rng.uniform(0, down)
        near = k % 3 == 0
        length, radius = (0.075, 0.0135) if near else (0.055, 0.0105)
        fill = (214, 228, 246, 225) if near else (172, 192, 220, 190)
        for shift in (-down, 0.0):
            for side in (0.0, across):
                start = (x + side, y + shift)
                strokes.capsule(start, (start[0] - 0.14 * length, start[1] + length), 0.25 * radius, radius, fill)
    return strokes


def _snow(rng: np.random.Generator, across: float, down: float) -> Strokes:
    strokes = Strokes()
    for k in range(round(46 * across * down)):
        x, y = rng.uniform(0, across), rng.uniform(0, down)
        near = k % 3 == 0
        radius = rng.uniform(0.018, 0.025) if near else rng.uniform(0.0125, 0.016)
        fill = (255, 255, 255, 255) if near else (214, 224, 242, 255)
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
                (glint, y), (min(glint + half, across - 0.01), y), 0.004, 0.006, (*hsv(hue, 0.4, 0.85), 255)
            )
    return strokes


def _grass(rng: np.random.Generator, across: float, down: float) -> Strokes:
    """Gusts of wind: patches of bowed grass that catch the light, each before a dark one; the near ones larger."""
    strokes = Strokes()
    gust = smooth(np.array([(-1.15, 0.12), (-0.1, -0.36), (1.15, -0.12), (0.1, 0.36)]))
    for row, level in enumerate(np.linspace(0.06, 0.95, 6)):
        size = 0.05 + 0.06 * level
        count = max(3, round(across / (5.0 * size)))
        for k in range(count):
            x = across * (k + 0.5 * (row % 2) + rng.uniform(-0.2, 0.2)) / count
            y, wide = (level + rng.uniform(-0.02, 0.02)) * down, size * rng.uniform(0.8, 1.2)
            for shift in (-across, 0.0, across):
                for behind, fill in ((1.0, (16, 56, 30, 72)), (0.0, (250, 255, 190, 130))):
                    strokes.polygon(gust * (1.3 * wide, size) + xy(x + shift - behind * wide, y), fill)
    return strokes


def _stars(rng: np.random.Generator, across: float, down: float) -> Strokes:
    """Large stars; every third has four points and a halo."""
    strokes = Strokes()
    tones: list[Colour] = [(255, 252, 236), (255, 226, 176), (206, 222, 255)]
    star = np.array(
        [(1.0 if k % 2 == 0 else 0.42) * xy(np.cos(k * np.pi / 4), np.sin(k * np.pi / 4)) for k in range(8)]
    )
    for k in range(round(56 * across * down)):
        # Spread evenly: the golden section across, by chance downwards.
        centre = np.array([across * ((0.618 * k + rng.uniform(-0.03, 0.03)) % 1.0), rng.uniform(0, down)])
        size, tone = rng.uniform(0.011, 0.015), tones[k % 3]
        for shift in (-across, 0.0, across):
            at = centre + xy(shift, 0)
            if k % 3 == 0:
                strokes.ellipse(at, 2.1 * size, 2.1 * size, (*tone, 60))
                strokes.polygon(at + 1.9 * size * star, (*tone, 255))
            else:
                strokes.ellipse(at, size, size, (*tone, 255))
    return strokes


SHEETS = {
    "clouds": _clouds,
    "waterfall": _waterfall,
    "rain": _rain,
    "snow": _snow,
    "ocean": _ocean,
    "grass": _grass,
    "stars": _stars,
}


def falling_fireworks(rng: np.random.Generator, half: float) -> Live:
    """Rockets that burst one after another for ever. half: half the picture's width in heights."""
    period, count = 24.0, 4
    hues, wide = rng.random(count), rng.uniform(0.27, 0.33, count)
    x = (np.linspace(-0.6, 0.6, count)[rng.permutation(count)] + rng.uniform(-0.1, 0.1, count)) * half
    y, turn = rng.uniform(0.18, 0.36, count), rng.uniform(0, 6.3, count)
    start = np.arange(count) * period / count + rng.uniform(0, 2, count)

    def at(t: float) -> Strokes:
        strokes = Strokes()
        for k in range(count):
            age = (t - start[k]) % period
            if age < 4:  # the rocket climbs
                tip = np.array([x[k], 0.72 + (y[k] - 0.72) * (age / 4) ** 0.8])
                strokes.capsule(tip + xy(0, 0.07), tip, 0.004, 0.014, (*hsv(hues[k], 0.25, 1.0), 220))
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
    for ring, spokes, shift in ((1.0, 9, 0.0), (0.55, 6, 0.08)):
        for spoke in turn + np.arange(spokes) * 2 * np.pi / spokes:
            way = np.array([np.cos(spoke), np.sin(spoke)]) * ring
            colour = hsv(hue + shift, 0.55, 1.0)
            inner, outer = centre + tail * way + 0.9 * sink, centre + reach * way + sink
            strokes.capsule(inner, outer, 0.004, 0.012, (*colour, round(255 * fade)))
            strokes.ellipse(outer, 0.018 * fade, 0.018 * fade, (*hsv(hue + shift, 0.15, 1.0), round(255 * fade)))


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


def swaying_blades(rng: np.random.Generator, half: float, speed: float) -> Live:
    """Tall grass in front that bows as the gusts run past. speed: theirs, to the right, in heights a frame."""
    count, wave = 44, 0.45  # wave: from gust to gust, in heights
    x, y = np.linspace(-half - 0.04, half + 0.04, count), rng.uniform(0.93, 1.03, count)
    tall, wide = rng.uniform(0.13, 0.2, count), rng.uniform(0.013, 0.018, count)
    hue = rng.uniform(0.24, 0.32)
    fills = [hsv(hue + rng.uniform(-0.02, 0.02), 0.58, rng.uniform(0.4, 0.7)) for _ in range(count)]
    order = np.argsort(y).tolist()  # the near ones last

    def at(t: float) -> Strokes:
        strokes = Strokes()
        bow = tall * (0.3 + 0.3 * np.sin(2 * np.pi * (x - speed * t) / wave))  # [count]
        spine = [(x, y), (x + 0.3 * bow, y - 0.6 * tall), (x + bow, y - tall)]
        (foot_x, foot_y), (bend_x, bend_y), (tip_x, tip_y) = spine
        right = [foot_x + wide, bend_x + 0.7 * wide, tip_x, bend_x - 0.7 * wide, foot_x - wide]
        blades = np.stack([np.stack(right, -1), np.stack([foot_y, bend_y, tip_y, bend_y, foot_y], -1)], -1)
        for k in order:
            strokes.polygon(blades[k], fills[k])
        return strokes

    return at

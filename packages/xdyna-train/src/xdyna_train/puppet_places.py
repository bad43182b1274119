"""Places by the house: streets, squares and rooms; and the list of all places."""

import numpy as np

from xdyna_train.puppet_landscapes import clouds, grass, ocean, snow, stars, waterfall
from xdyna_train.puppet_props import Place, city, paving, plant, ridge, window
from xdyna_train.puppet_strokes import Strokes, blend, hsv, shade


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
    "waterfall": waterfall,
    "fireworks": _fireworks,
    "clouds": clouds,
    "rain": _rain,
    "snow": snow,
    "ocean": ocean,
    "grass": grass,
    "stars": stars,
    "room": _room,
}

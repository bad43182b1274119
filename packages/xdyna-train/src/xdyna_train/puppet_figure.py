"""Draws a posed puppet's body: clothes, limbs, hands and shoes. The head has a module of its own."""

import numpy as np

from xdyna_train.puppet_head import draw_back_hair, draw_head
from xdyna_train.puppet_identity import Identity
from xdyna_train.puppet_motion import Pose
from xdyna_train.puppet_skeleton import Skeleton
from xdyna_train.puppet_strokes import Colour, Strokes, outline, shade, xy

LINE = 0.0035  # width of the drawn line around every part, in heights


def draw_figure(identity: Identity, skeleton: Skeleton, pose: Pose, legs: bool = True) -> Strokes:
    """The whole puppet, from the back to the front; without legs and skirt where legs is False."""
    strokes = Strokes()
    draw_back_hair(strokes, identity, skeleton, pose)
    if legs:
        _draw_legs(strokes, identity, skeleton)
        if identity.bottom == "skirt":
            _draw_skirt(strokes, identity, skeleton, pose)
    _limb(strokes, [skeleton.neck, skeleton.head], [0.3 * identity.head] * 2, identity.skin)
    _draw_torso(strokes, identity, skeleton)
    draw_head(strokes, identity, skeleton, pose)
    for side in (0, 1):
        _draw_arm(strokes, identity, skeleton, side)
    return strokes


def _limbs(strokes: Strokes, chains: list[tuple[list[np.ndarray], list[float]]], colour: Colour) -> None:
    """Chains of capsules (points, radii) that grow into each other, with one line around and the right in the shade."""
    parts = [
        part for points, radii in chains for part in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True)
    ]
    for start, end, first, last in parts:
        strokes.capsule(start, end, first + LINE, last + LINE, outline(colour))
    for start, end, first, last in parts:
        strokes.capsule(start, end, first, last, shade(colour))
    for start, end, first, last in parts:
        lit = (-0.22 * (first + last) / 2, -0.06 * first)
        strokes.capsule(start + lit, end + lit, 0.76 * first, 0.76 * last, colour)


def _limb(strokes: Strokes, points: list[np.ndarray], radii: list[float], colour: Colour) -> None:
    _limbs(strokes, [(points, radii)], colour)


def _draw_legs(strokes: Strokes, identity: Identity, skeleton: Skeleton) -> None:
    legs = list(skeleton.body[8:14].reshape(2, 3, 2))
    width = identity.limb
    for sign, (_, _, ankle) in zip((-1.0, 1.0), legs, strict=True):
        _draw_shoe(strokes, identity, ankle, sign)
    seat = [legs[0][0] - (0, 0.02), legs[1][0] - (0, 0.02)]
    pelvis = (seat, [0.036 * width] * 2)
    if identity.bottom == "trousers":
        radii = [0.037 * width, 0.031 * width, 0.027 * width]
        _limbs(strokes, [(list(leg), radii) for leg in legs] + [pelvis], identity.bottom_colour)
        return
    for hip, knee, ankle in legs:
        _limb(strokes, [hip, knee, ankle], [0.032 * width, 0.025 * width, 0.018 * width], identity.skin)
        sock = ankle + 0.28 * (knee - ankle)
        _limb(strokes, [sock, ankle], [0.021 * width, 0.02 * width], (240, 238, 232))
    if identity.bottom == "shorts":
        ends = [[hip, hip + 0.8 * (knee - hip)] for hip, knee, _ in legs]
        _limbs(strokes, [(end, [0.037 * width, 0.036 * width]) for end in ends] + [pelvis], identity.bottom_colour)


def _draw_shoe(strokes: Strokes, identity: Identity, ankle: np.ndarray, sign: float) -> None:
    heel, toe = ankle + xy(-0.006 * sign, 0.016), ankle + xy(0.03 * sign, 0.021)
    strokes.capsule(heel + xy(0, 0.008), toe + xy(0, 0.007), 0.02 + LINE, 0.019 + LINE, outline(identity.shoe))
    strokes.capsule(heel + xy(0, 0.007), toe + xy(0, 0.006), 0.02, 0.019, (238, 234, 226))
    strokes.capsule(heel, toe, 0.021, 0.019, shade(identity.shoe))
    strokes.capsule(heel + xy(-0.003, -0.003), toe + xy(-0.004, -0.004), 0.017, 0.014, identity.shoe)


def _draw_skirt(strokes: Strokes, identity: Identity, skeleton: Skeleton, pose: Pose) -> None:
    """A flared skirt; its hem trails behind the hips."""
    colour, knees = identity.bottom_colour, skeleton.body[[9, 12]]
    half, flare = identity.hip + 0.026, identity.hip + 0.062
    length = 0.44 * identity.leg + 0.04
    waist = skeleton.hip + 0.045 * skeleton.up
    left = min(skeleton.hip[0] - flare, knees[0, 0] - 0.022)
    right = max(skeleton.hip[0] + flare, knees[1, 0] + 0.022)

    def cut(part: np.ndarray | float, level: np.ndarray | float) -> np.ndarray:
        """Places on the skirt: part 0 left to 1 right, level 0 waist to 1 hem."""
        part, level = np.broadcast_arrays(np.asarray(part, float), np.asarray(level, float))
        open_up = level**0.75
        x = (waist[0] + half * (2 * part - 1)) * (1 - open_up) + (left + (right - left) * part) * open_up
        sag = 0.012 * np.sin(np.pi * part) * level
        return np.stack([x + 0.7 * pose.drag * level**1.5, waist[1] + length * level + sag], -1)

    down, along = np.linspace(0, 1, 8), np.linspace(0, 1, 17)
    scallops = cut(along, 1 + 0.025 * np.cos(along * 8 * np.pi))
    strokes.outlined(np.concatenate([cut(0.0, down), scallops, cut(1.0, down[::-1])]), colour, LINE)
    strokes.polygon(np.concatenate([cut(0.7, down), scallops[12:], cut(1.0, down[::-1])]), shade(colour))
    for part in (0.25, 0.5):
        strokes.line(cut(part, np.linspace(0.25, 1, 6)), LINE, shade(colour))
    strokes.line(cut(along, 0.93), 0.009, identity.trim)


class _Shirt:
    """The shirt's outline; levels are torso lengths below the neck, parts run over its width from -1 to 1."""

    def __init__(self, identity: Identity, skeleton: Skeleton) -> None:
        shoulder, hip = identity.shoulder, identity.hip + 0.036 * identity.limb
        self._levels = np.array([-0.06, 0.0, 0.08, 0.2, 0.34, 0.68, 1.0, 1.14])
        waist = 0.5 * shoulder + 0.42 * hip
        self._halves = np.array([0.03, 0.042, 0.96 * shoulder, 1.06 * shoulder, 0.96 * shoulder, waist, hip, hip])
        self._down = -identity.torso * skeleton.up
        self._across = xy(-skeleton.up[1], skeleton.up[0])
        self._neck = skeleton.neck
        self.hem = 0.88 if identity.bottom == "skirt" else 1.1

    def edge(self, level: np.ndarray, part: float) -> np.ndarray:
        """level: [N]. Returns the places there, [N, 2]."""
        half = np.interp(level, self._levels, self._halves)
        return self._neck + level[:, None] * self._down + part * half[:, None] * self._across

    def spot(self, level: float, part: float = 0.0) -> np.ndarray:
        """One place, [2]."""
        return self.edge(np.array([level]), part)[0]

    def band(self, top: float, bottom: float, left: float = -1.0, right: float = 1.0) -> np.ndarray:
        """The piece between two levels and two parts, [N, 2]."""
        level = np.linspace(top, bottom, 14 if bottom - top > 0.3 else 3)
        return np.concatenate([self.edge(level, left), self.edge(level[::-1], right)])


def _draw_torso(strokes: Strokes, identity: Identity, skeleton: Skeleton) -> None:
    shirt = _Shirt(identity, skeleton)
    strokes.outlined(shirt.band(-0.06, shirt.hem), identity.shirt, LINE)
    if identity.pattern == "stripes":
        for top in np.arange(0.18, shirt.hem - 0.1, 0.2).tolist():
            strokes.polygon(shirt.band(top, top + 0.1), identity.trim)
    elif identity.pattern == "jacket":
        strokes.polygon(shirt.band(-0.03, shirt.hem, -0.36, 0.36), identity.trim)
    elif identity.pattern == "spot":
        strokes.ellipse(shirt.spot(0.38), 0.036, 0.036, identity.trim)
        strokes.ellipse(shirt.spot(0.38), 0.02, 0.02, shade(identity.shirt))
    elif identity.pattern == "dots":
        for row, level in enumerate(np.arange(0.18, shirt.hem - 0.06, 0.17).tolist()):
            for part in (-0.62, 0.0, 0.62) if row % 2 else (-0.32, 0.32):
                strokes.ellipse(shirt.spot(level, part), 0.0085, 0.0085, identity.trim)
    strokes.polygon(shirt.band(0.2, shirt.hem, 0.72, 1.0), shade(identity.shirt))
    # The neckline, over the neck's lower end.
    strokes.ellipse(shirt.spot(-0.02), 0.034, 0.018, outline(identity.shirt))
    strokes.ellipse(shirt.spot(-0.035), 0.03, 0.016, shade(identity.skin))


def _draw_arm(strokes: Strokes, identity: Identity, skeleton: Skeleton, side: int) -> None:
    shoulder, elbow, wrist = skeleton.body[2 + 3 * side : 5 + 3 * side]
    width = identity.limb
    _draw_hand(strokes, identity, skeleton.hands[1 - side])
    if identity.long_sleeves:
        _limb(strokes, [shoulder, elbow, wrist], [0.027 * width, 0.023 * width, 0.02 * width], identity.shirt)
        cuff = wrist + 0.1 * (elbow - wrist)
        strokes.capsule(wrist, cuff, 0.02 * width, 0.02 * width, shade(identity.shirt))
        return
    _limb(strokes, [shoulder, elbow, wrist], [0.022 * width, 0.019 * width, 0.015 * width], identity.skin)
    _limb(strokes, [shoulder, shoulder + 0.55 * (elbow - shoulder)], [0.027 * width, 0.029 * width], identity.shirt)


def _draw_hand(strokes: Strokes, identity: Identity, hand: np.ndarray) -> None:
    """hand: [21, 2], wrist then five fingers of four points."""
    thick = 0.0056 * identity.limb
    palm = hand[[5, 9, 13, 17]].mean(0)
    for grow, colour in ((0.75 * LINE, outline(identity.skin)), (0.0, identity.skin)):
        for finger in range(5):
            first, last = hand[1 + 4 * finger], hand[4 + 4 * finger]
            strokes.capsule(first, last, thick + grow, 0.85 * thick + grow, colour)
        strokes.capsule(hand[0], palm, 0.0135 * identity.limb + grow, 0.0165 * identity.limb + grow, colour)

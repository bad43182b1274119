"""Draws a puppet's head: hair behind, face, hair in front."""

import numpy as np

from xdyna_train.puppet_face import brow_points, eye_curves, jaw_points, mouth_edges, turned
from xdyna_train.puppet_identity import Identity
from xdyna_train.puppet_motion import Expression, Pose
from xdyna_train.puppet_skeleton import Skeleton
from xdyna_train.puppet_strokes import Colour, Strokes, blend, outline, shade, smooth, smooth_line, xy

_LINE = 0.04  # width of the drawn line, in head radii
_ALONG = np.linspace(-1, 1, 11)
_DISC = np.array([(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 20, endpoint=False)])
_DARK = (52, 36, 44)


def _disc(strokes: Strokes, skeleton: Skeleton, centre: tuple[float, float], radius: float, fill: Colour) -> None:
    strokes.ellipse(
        skeleton.on_head(np.array([centre]))[0], radius * skeleton.head_radius, radius * skeleton.head_radius, fill
    )


def draw_back_hair(strokes: Strokes, identity: Identity, skeleton: Skeleton, pose: Pose) -> None:
    """What of the hair is behind the neck and the shoulders."""
    wide, back = identity.face_width, shade(identity.hair)
    trail = pose.drag / identity.head
    thick = _LINE * identity.head
    if identity.hair_style == "curls":
        for angle in np.radians(np.arange(-120, 121, 24)):
            centre = (1.0 * np.sin(angle) * wide, -0.12 - 0.95 * np.cos(angle))
            _disc(strokes, skeleton, centre, 0.5 + _LINE, outline(identity.hair))
        for angle in np.radians(np.arange(-120, 121, 24)):
            _disc(strokes, skeleton, (1.0 * np.sin(angle) * wide, -0.12 - 0.95 * np.cos(angle)), 0.5, identity.hair)
    elif identity.hair_style in ("long", "bob"):
        tip = 2.15 if identity.hair_style == "long" else 1.05
        half = np.array([(0, -1.16), (0.75, -0.95), (1.16, -0.2), (1.2, 0.5), (1.14, 0.75 * tip), (0.85, tip)])
        outer = np.concatenate([half, [(0.0, tip - 0.12)], half[:0:-1] * (-1, 1)]) * (wide, 1)
        outer[:, 0] += trail * np.clip(outer[:, 1], 0, None) ** 1.5 * 0.55
        strokes.outlined(skeleton.on_head(smooth(outer)), back, thick)
    elif identity.hair_style == "tail":
        lock = np.array(
            [(0.55, -0.75), (1.25, -0.75), (1.55, 0.0), (1.5 + 0.7 * trail, 0.8), (1.25 + 1.5 * trail, 1.5)]
        )
        points = skeleton.on_head(smooth_line(lock - (2.0 * np.sin(pose.turn), 0)))
        radii = np.interp(np.linspace(0, 1, len(points)), [0, 0.25, 0.6, 1], [0.22, 0.34, 0.3, 0.08]) * identity.head
        for grow, fill in ((thick, outline(identity.hair)), (0.0, back)):
            for k in range(len(points) - 1):
                strokes.capsule(points[k], points[k + 1], radii[k] + grow, radii[k + 1] + grow, fill)
    elif identity.hair_style == "bun":
        _disc(strokes, skeleton, (0.0, -1.3), 0.46 + _LINE, outline(identity.hair))
        _disc(strokes, skeleton, (0.0, -1.3), 0.46, back)
        _disc(strokes, skeleton, (-0.06, -1.34), 0.36, identity.hair)


def draw_head(strokes: Strokes, identity: Identity, skeleton: Skeleton, pose: Pose) -> None:
    """Ears, face and the hair in front."""
    expression, turn = pose.expression, pose.turn
    wide = identity.face_width
    shift = 0.12 * np.sin(turn)
    for sign in (-1, 1):
        _disc(strokes, skeleton, (sign * wide - shift, 0.12), 0.2 + _LINE, outline(identity.skin))
        _disc(strokes, skeleton, (sign * wide - shift, 0.12), 0.2, identity.skin)
        _disc(strokes, skeleton, (sign * wide * 1.02 - shift, 0.13), 0.1, shade(identity.skin))
    jaw = jaw_points(identity, expression, turn)
    arc = np.radians(np.linspace(82, -82, 12))[1:-1]
    skull = np.stack([wide * np.sin(arc), -np.cos(arc)], -1)
    face = skeleton.on_head(np.concatenate([jaw, skull]))
    strokes.outlined(face, identity.skin, _LINE * identity.head)
    cheek = np.concatenate([jaw[7:], (jaw[7:] * (0.86, 0.93) + (-0.02, -0.02))[::-1]])
    strokes.polygon(skeleton.on_head(cheek), shade(identity.skin))
    _draw_features(strokes, identity, skeleton, expression, turn)
    if identity.hair_style == "cap":
        _draw_cap(strokes, identity, skeleton, turn)
    else:
        _draw_front_hair(strokes, identity, skeleton, turn)


def _draw_features(
    strokes: Strokes, identity: Identity, skeleton: Skeleton, expression: Expression, turn: float
) -> None:
    radius = identity.head
    blush = blend(identity.skin, (232, 92, 92), 0.28)
    for sign in (-1, 1):
        spot = turned(np.array([(sign * 0.56, 0.42)]), turn)[0]
        strokes.ellipse(skeleton.on_head(spot[None])[0], 0.15 * radius, 0.1 * radius, blush)
        _draw_eye(strokes, identity, skeleton, expression, turn, sign)
    brows = skeleton.on_head(turned(brow_points(identity, expression), turn))
    for brow in (brows[:5], brows[5:]):
        strokes.line(smooth_line(brow), 0.085 * identity.brow * radius, blend(identity.hair, _DARK, 0.45))
    nose = np.array([(0.02, 0.08), (0.1, 0.24), (0.07, 0.31), (-0.07, 0.31)]) * (identity.nose, 1)
    strokes.line(
        skeleton.on_head(turned(smooth_line(nose), turn, 1.2)), 0.045 * radius, blend(identity.skin, _DARK, 0.4)
    )
    _draw_mouth(strokes, identity, skeleton, expression, turn)


def _draw_eye(
    strokes: Strokes, identity: Identity, skeleton: Skeleton, expression: Expression, turn: float, sign: int
) -> None:
    top, bottom = eye_curves(identity, expression, sign, _ALONG)
    radius = identity.head
    if expression.eyes > 0.12:
        white = np.concatenate([top, bottom[::-1]])
        strokes.polygon(skeleton.on_head(turned(white, turn)), (250, 250, 248))
        centre = np.array([sign * identity.eye_gap, 0.03]) + np.array(expression.gaze) * (0.07, 0.05)
        for size, fill in ((0.145, identity.iris), (0.085, (24, 18, 24))):
            iris = _clipped_disc(centre, size * identity.eye, top, bottom)
            strokes.polygon(skeleton.on_head(turned(iris, turn)), fill)
        glint = _clipped_disc(centre + xy(-0.05, -0.06), 0.042, top, bottom)
        strokes.polygon(skeleton.on_head(turned(glint, turn)), (255, 255, 255))
    strokes.line(skeleton.on_head(turned(top, turn)), 0.07 * radius, _DARK)
    strokes.line(skeleton.on_head(turned(bottom[2:-2], turn)), 0.025 * radius, blend(identity.skin, _DARK, 0.55))


def _clipped_disc(centre: np.ndarray, radius: float, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """A disc as far as it lies between the lids. Returns [20, 2]."""
    disc = centre + radius * _DISC
    x = disc[:, 0] = np.minimum(np.maximum(disc[:, 0], top[0, 0]), top[-1, 0])
    y = np.maximum(disc[:, 1], np.interp(x, top[:, 0], top[:, 1]))
    disc[:, 1] = np.minimum(y, np.interp(x, bottom[:, 0], bottom[:, 1]))
    return disc


def _draw_mouth(strokes: Strokes, identity: Identity, skeleton: Skeleton, expression: Expression, turn: float) -> None:
    def place(points: np.ndarray) -> np.ndarray:
        return skeleton.on_head(turned(points, turn))

    lip = blend(identity.skin, (186, 44, 66), 0.55)
    outer_top, upper, lower, outer_bottom = mouth_edges(identity, expression, _ALONG)
    strokes.polygon(place(np.concatenate([outer_top, outer_bottom[::-1]])), lip)
    if expression.mouth < 0.06:
        strokes.line(place(upper), 0.045 * identity.head, outline(lip))
        return
    strokes.polygon(place(np.concatenate([upper, lower[::-1]])), (92, 22, 38))
    gap = lower - upper
    inner = slice(2, -2)
    tongue = lower - 0.42 * gap
    strokes.polygon(place(np.concatenate([tongue[inner], lower[inner][::-1]])), (226, 104, 112))
    teeth = upper + np.minimum(0.4 * gap, 0.085)
    strokes.polygon(place(np.concatenate([upper[1:-1], teeth[1:-1][::-1]])), (252, 250, 244))


def _draw_front_hair(strokes: Strokes, identity: Identity, skeleton: Skeleton, turn: float) -> None:
    wide = identity.face_width
    low = 0.55 if identity.hair_style in ("long", "bob") else 0.02
    rise = 1.22 if identity.hair_style == "short" else 1.15
    outer = np.array([(-1.1, low), (-1.12, -0.3), (-0.82, -0.85), (0, -rise), (0.82, -0.85), (1.12, -0.3), (1.1, low)])
    fringe = {
        "short": [(0.94, -0.2), (0.72, -0.55), (0.2, -0.62), (-0.35, -0.5), (-0.78, -0.55), (-0.94, -0.2)],
        "bob": [(0.92, 0.2), (0.88, -0.32), (0.45, -0.5), (0, -0.44), (-0.45, -0.5), (-0.88, -0.32), (-0.92, 0.2)],
        "curls": [(0.96, -0.2), (0.7, -0.52), (0.3, -0.5), (-0.1, -0.58), (-0.55, -0.5), (-0.96, -0.2)],
    }.get(identity.hair_style, [(0.94, 0.0), (0.86, -0.4), (0.35, -0.72), (-0.3, -0.66), (-0.84, -0.36), (-0.94, 0.0)])
    inner = np.array(fringe) + xy(0.3 * np.sin(turn), 0)
    inner[[0, -1]] = fringe[0], fringe[-1]
    shape = smooth(np.concatenate([outer, inner]) * (wide, 1))
    strokes.outlined(skeleton.on_head(shape), identity.hair, _LINE * identity.head)
    gloss = np.array([(-0.72, -0.62), (-0.42, -0.86), (0.0, -0.97)]) * (wide, 1)
    light = blend(identity.hair, (255, 255, 255), 0.25)
    strokes.line(skeleton.on_head(smooth_line(gloss)), 0.09 * identity.head, light)


def _draw_cap(strokes: Strokes, identity: Identity, skeleton: Skeleton, turn: float) -> None:
    wide, thick = identity.face_width, _LINE * identity.head
    for sign in (-1, 1):  # hair under the cap
        temple = np.array([(0.98, -0.5), (1.08, -0.1), (1.02, 0.1), (0.9, -0.25)]) * (sign * wide, 1)
        strokes.polygon(skeleton.on_head(smooth(temple)), identity.hair)
    crown = np.array([(-1.1, -0.4), (-1.0, -0.85), (-0.55, -1.2), (0, -1.3), (0.55, -1.2), (1.0, -0.85), (1.1, -0.4)])
    crown = np.concatenate([crown, [(0.5, -0.55), (-0.5, -0.55)]]) * (wide, 1)
    strokes.outlined(skeleton.on_head(smooth(crown)), identity.trim, thick)
    strokes.polygon(
        skeleton.on_head(smooth(np.array([(0.5, -1.15), (1.0, -0.8), (1.06, -0.5), (0.7, -0.6)]) * (wide, 1))),
        shade(identity.trim),
    )
    brim = np.array([(-0.95, -0.46), (0, -0.68), (0.95, -0.46), (0.8, -0.28), (0, -0.36), (-0.8, -0.28)])
    brim = brim * (wide, 1) + (0.25 * np.sin(turn), 0)
    strokes.outlined(skeleton.on_head(smooth(brim)), shade(identity.trim), thick)

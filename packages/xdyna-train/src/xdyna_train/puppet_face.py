"""Where the parts of a puppet's face are, in head radii, (right, down) from the head's middle.

The drawn face and the 68 points that are given out as truth both come from here, so they cannot differ.
"""

import numpy as np

from xdyna_train.puppet_identity import Identity
from xdyna_train.puppet_motion import Expression


def turned(points: np.ndarray, turn: float, depth: float = 1.0) -> np.ndarray:
    """points: [N, 2] on the face, in head radii. Returns where they are seen when the head turns by `turn`."""
    seen, across = points.copy(), points[:, 0]
    seen[:, 0] = across * np.cos(turn) + 0.6 * depth * np.sin(turn) * np.sqrt(np.maximum(1 - across**2, 0.05))
    return seen


def face_points(identity: Identity, expression: Expression, turn: float) -> np.ndarray:
    """The 68 points, [68, 2] in head radii, (right, down) from the head's middle."""
    outer, inner = mouth_points(identity, expression)
    brows = brow_points(identity, expression)
    eyes = [eye_curves(identity, expression, sign, np.array([-1, -1 / 3, 1 / 3, 1.0])) for sign in (-1, 1)]
    rings = [np.concatenate([top, bottom[[2, 1]]]) for top, bottom in eyes]
    nose = identity.nose
    bridge = np.stack([np.zeros(4), np.linspace(0.0, 0.25, 4)], -1)
    nostrils = np.array(
        [(-0.13 * nose, 0.29), (-0.07 * nose, 0.31), (0, 0.33), (0.07 * nose, 0.31), (0.13 * nose, 0.29)]
    )
    front = turned(np.concatenate([bridge, nostrils]), turn, 1.2)
    return np.concatenate(
        [jaw_points(identity, expression, turn), turned(brows, turn), front]
        + [turned(part, turn) for part in (*rings, outer, inner)]
    )


def jaw_points(identity: Identity, expression: Expression, turn: float) -> np.ndarray:
    """The outline of the lower face, [17, 2], from the picture's left; an open mouth lowers the chin."""
    angle = np.radians(np.linspace(-98, 98, 17))
    low = np.clip(np.cos(angle), 0, 1)
    across = identity.face_width * np.sin(angle) * (1 - 0.12 * low**1.5) + 0.1 * np.sin(turn) * low
    return np.stack([across, np.cos(angle) * identity.chin * 0.97 + 0.15 * expression.mouth * low**3], -1)


def eye_curves(
    identity: Identity, expression: Expression, sign: int, along: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower edge of an eye (sign -1: the picture's left), each [N, 2], at `along` in [-1, 1]."""
    x = sign * identity.eye_gap + 0.2 * identity.eye * along
    rise = identity.eye * np.sqrt(np.clip(1 - along**2, 0, 1))
    middle = 0.06 + 0.08 * (1 - expression.eyes)
    top = middle - 0.25 * expression.eyes * rise
    bottom = middle + (0.03 + 0.15 * expression.eyes) * rise
    return np.stack([x, top], -1), np.stack([x, bottom], -1)


def brow_points(identity: Identity, expression: Expression) -> np.ndarray:
    """Both brows, [10, 2], from the picture's left."""
    along = np.linspace(-1, 1, 5)
    height = -0.34 - 0.09 * expression.brow - 0.07 * (1 - along**2)
    slant = 0.06 * min(expression.brow, 0.0)  # lowered brows go down towards the nose
    left = np.stack([-identity.eye_gap + 0.24 * along, height - slant * along], -1)
    right = np.stack([identity.eye_gap + 0.24 * along, height + slant * along], -1)
    return np.concatenate([left, right])


def mouth_edges(identity: Identity, expression: Expression, along: np.ndarray) -> tuple[np.ndarray, ...]:
    """Outer upper, inner upper, inner lower and outer lower edge of the lips, each [N, 2], at `along` in [-1, 1]."""
    smile, opening = expression.smile, expression.mouth
    x = identity.mouth * (0.29 + 0.07 * smile - 0.04 * opening) * along
    bow = 1 - along**2
    line = 0.54 - 0.09 * smile + (0.02 + 0.12 * smile) * bow
    upper = line - 0.06 * opening * bow
    lower = line + 0.3 * opening * np.sqrt(bow)
    edges = (upper - 0.055 * np.sqrt(bow), upper, lower, lower + 0.065 * np.sqrt(bow))
    return tuple(np.stack([x, edge], -1) for edge in edges)


def mouth_points(identity: Identity, expression: Expression) -> tuple[np.ndarray, np.ndarray]:
    """The outer [12, 2] and inner [8, 2] mouth points in iBUG's order."""
    top, _, _, bottom = mouth_edges(identity, expression, np.linspace(-1, 1, 7))
    _, upper, lower, _ = mouth_edges(identity, expression, np.array([-0.85, -0.4, 0, 0.4, 0.85]))
    return np.concatenate([top, bottom[5:0:-1]]), np.concatenate([upper, lower[3:0:-1]])

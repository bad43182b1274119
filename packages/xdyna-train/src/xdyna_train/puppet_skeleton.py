"""Where a puppet's joints, fingers and face points are in a given pose."""

from dataclasses import dataclass

import numpy as np

from xdyna_train.puppet_face import face_points
from xdyna_train.puppet_identity import Identity
from xdyna_train.puppet_motion import Pose
from xdyna_train.puppet_strokes import xy

# Of each finger: sideways place, where it begins along the hand, its length; parts of the hand's length.
_FINGERS = np.array([(0.75, 0.2, 0.5), (0.36, 0.48, 0.46), (0.1, 0.52, 0.5), (-0.16, 0.5, 0.45), (-0.4, 0.44, 0.36)])
_ANKLE_LINE = 0.915  # of the picture's height, where a planted ankle is


@dataclass(frozen=True)
class Skeleton:
    """A posed puppet in heights of the picture, x from its middle. float64.

    body: [14, 2] in the order of `xdyna_model.detectors.BODY`. hands: [2, 21, 2], left hand first.
    face: [68, 2]. hip, neck, head: [2], the middle of each. up: [2], the spine's direction.
    axes: [2, 2], one head radius along the head's own right and down. head_radius: their length.
    """

    body: np.ndarray
    hands: np.ndarray
    face: np.ndarray
    hip: np.ndarray
    neck: np.ndarray
    up: np.ndarray
    head: np.ndarray
    axes: np.ndarray
    head_radius: float

    def on_head(self, points: np.ndarray) -> np.ndarray:
        """points: [N, 2], (right, down) in head radii from the head's middle. Returns their places, [N, 2]."""
        return self.head + points @ self.axes


def pose_skeleton(identity: Identity, pose: Pose) -> Skeleton:
    """The puppet's joints in a pose: feet stand where the pose puts them, knees follow, arms hang from the spine."""
    hip, legs = _legs(identity, pose)
    up = _direction(np.pi - pose.lean)
    across = np.array([-up[1], up[0]])
    neck = hip + up * identity.torso
    arms, hands = [], []
    for sign, (lift, bend), wrist in zip((-1.0, 1.0), pose.arms, pose.wrists, strict=True):
        shoulder = neck - 0.028 * up + sign * (identity.shoulder + 0.006 * lift) * across
        elbow = shoulder + 0.52 * identity.arm * _direction(sign * lift)
        hand = elbow + 0.48 * identity.arm * _direction(sign * (lift + bend))
        arms.append((shoulder, elbow, hand))
        hands.append(_hand(hand, sign, lift + bend, wrist, pose.spread, 0.55 * identity.head))
    down = -_direction(np.pi - pose.lean - pose.tilt)
    side = np.array([down[1], -down[0]])
    head = neck - down * (0.012 + 1.02 * identity.head * identity.chin)
    local = face_points(identity, pose.expression, pose.turn)
    axes = identity.head * np.stack([side, down])
    face = head + local @ axes
    body = np.array([face[30], neck, *arms[0], *arms[1], *legs[0], *legs[1]])
    return Skeleton(body, np.stack(hands[::-1]), face, hip, neck, up, head, axes, identity.head)


def _direction(angle: float) -> np.ndarray:
    """0 is down, pi/2 is the picture's right."""
    return np.array([np.sin(angle), np.cos(angle)])


def _legs(identity: Identity, pose: Pose) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
    leg = identity.leg
    hip = np.array([pose.place + pose.sway * leg, _ANKLE_LINE - leg * (0.99 - 0.065 * pose.crouch)])
    thigh, shin = 0.51 * leg, 0.49 * leg
    legs = []
    for sign, (out, lift) in zip((-1.0, 1.0), pose.steps, strict=True):
        top = hip + xy(sign * identity.hip, 0.0)
        ankle = np.array([pose.place + sign * (identity.hip + out * leg), _ANKLE_LINE - lift * leg])
        reach = ankle - top
        length = float(np.hypot(*reach))
        stretch = min(length, 0.999 * (thigh + shin))
        ankle = top + reach * (stretch / length)
        # The law of cosines; the knee bends outwards.
        turn = np.arccos(np.clip((thigh**2 + stretch**2 - shin**2) / (2 * thigh * stretch), -1, 1))
        legs.append((top, top + thigh * _direction(np.arctan2(reach[0], reach[1]) + sign * turn), ankle))
    return hip, legs


def _hand(wrist: np.ndarray, sign: float, angle: float, bend: float, spread: float, length: float) -> np.ndarray:
    """Returns [21, 2]: wrist, then four points of each finger. length: wrist to middle fingertip of an open hand."""
    along = _direction(sign * (angle + bend))
    across = sign * np.array([along[1], -along[0]])
    # A hanging hand shows its edge, a raised one its palm, thumb to the head.
    across = across * float(np.clip(1.6 * angle - 0.9, -0.7, 1.0))
    joint = np.linspace(0.0, 1.0, 4)
    lane, base, reach = (column[:, None] for column in _FINGERS.T)
    fan = lane * (0.25 + 0.65 * spread)
    points = np.zeros((21, 2))
    points[1:, 0] = (base + reach * (0.45 + 0.55 * spread) * joint).ravel()
    points[1:, 1] = (0.38 * lane + 0.8 * fan * reach * joint).ravel()
    return wrist + length * (points @ np.stack([along, across]))

"""How a puppet moves: smooth joint angles and face parameters over time, the same for every identity."""

from dataclasses import dataclass

import numpy as np

_STANCE = 0.11  # how far a foot stands outside its hip, in leg lengths


@dataclass(frozen=True)
class Expression:
    """What the face does. mouth: 0 closed to 1 wide open; smile: -1 to 1; eyes: 0 shut to 1 wide open;
    gaze: (right, down), each -1 to 1, in the picture's directions; brow: -1 lowered to 1 raised."""

    mouth: float = 0.0
    smile: float = 0.5
    eyes: float = 0.85
    gaze: tuple[float, float] = (0.0, 0.0)
    brow: float = 0.0


@dataclass(frozen=True)
class Pose:
    """A moment of a motion. Angles in radians. Of pairs the first is the person's right, at the picture's left.

    place: sideways place of the feet's middle, in heights of the picture from its centre.
    sway: how far the hips are beside that, in leg lengths. crouch: 0 straight to 1 low.
    lean, tilt, turn: of the spine and the head in the picture, and the head's turn to its own left.
    arms: (from hanging, outwards, to straight up at pi; the elbow's bend), for each side.
    wrists: bend of each hand. spread: 0 fist to 1 open hand.
    steps: (sideways from the hip, lift), each in leg lengths.
    drag: how far what hangs loosely (hair, skirt) trails sideways, in heights.
    """

    place: float
    sway: float
    crouch: float
    lean: float
    tilt: float
    turn: float
    arms: tuple[tuple[float, float], tuple[float, float]]
    wrists: tuple[float, float]
    spread: float
    steps: tuple[tuple[float, float], tuple[float, float]]
    drag: float
    expression: Expression


@dataclass(frozen=True)
class Motion:
    """A dance. tempo: radians of its beat in a frame (0 stands still); place: as in `Pose`; the other numbers are
    the rests, swings and phases of the parts, as `sample` draws them."""

    tempo: float
    place: float
    sway: float
    bounce: float
    lean: float
    turn: float
    stride: float
    arm_rest: tuple[tuple[float, float], tuple[float, float]]
    arm_swing: tuple[tuple[float, float], tuple[float, float]]
    arm_phase: tuple[tuple[float, float], tuple[float, float]]
    face_rest: tuple[float, ...]  # mouth, smile, eyes, gaze right, gaze down, brow
    face_swing: tuple[float, ...]
    face_rate: tuple[float, ...]  # radians a frame
    face_phase: tuple[float, ...]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Motion":
        """A dance drawn from rng."""
        rest = _arm_rest(rng)
        swing = (float(rng.uniform(0.35, 0.85)), float(rng.uniform(0.25, 0.7)))
        phase = (float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 2 * np.pi)))
        other_rest = rest if rng.random() < 0.5 else _arm_rest(rng)
        # In time with each other or against each other, as people do.
        shift = float(np.pi * rng.integers(2) + rng.normal(0, 0.25))
        face_swing = np.array([0.5, 0.8, 0.35, 0.7, 0.35, 0.7]) * rng.uniform(0.5, 1.0, 6)
        return cls(
            tempo=float(rng.uniform(0.35, 0.7)),
            place=float(rng.uniform(-0.035, 0.035)),
            sway=float(rng.uniform(0.05, 0.16)),
            bounce=float(rng.uniform(0.3, 0.9)),
            lean=float(rng.uniform(0.03, 0.13)),
            turn=float(rng.uniform(0.1, 0.45)),
            stride=float(rng.uniform(0.0, 0.14)),
            arm_rest=(rest, other_rest),
            arm_swing=(swing, swing),
            arm_phase=(phase, (phase[0] + shift, phase[1] + shift)),
            face_rest=(0.35, 0.3, 0.8, 0.0, 0.0, 0.1),
            face_swing=tuple(face_swing.tolist()),
            face_rate=tuple(rng.uniform(0.2, 0.65, 6).tolist()),
            face_phase=tuple(rng.uniform(0, 2 * np.pi, 6).tolist()),
        )

    @classmethod
    def standing(cls) -> "Motion":
        """No motion: upright, arms at ease, smiling with open eyes."""
        at_ease, none, still = ((0.32, 0.12), (0.32, 0.12)), ((0.0, 0.0), (0.0, 0.0)), (0.0,) * 6
        return cls(
            tempo=0.0,
            place=0.0,
            sway=0.0,
            bounce=0.0,
            lean=0.0,
            turn=0.0,
            stride=0.0,
            arm_rest=at_ease,
            arm_swing=none,
            arm_phase=none,
            face_rest=(0.0, 0.6, 0.9, 0.0, 0.0, 0.1),
            face_swing=still,
            face_rate=still,
            face_phase=still,
        )

    def at(self, t: float) -> Pose:
        """The pose at time t, in frames (any real number)."""
        beat = self.tempo * t
        rests, swings, phases = self.arm_rest, self.arm_swing, self.arm_phase
        right, left = (_arm(beat, rests[k], swings[k], phases[k]) for k in (0, 1))
        lifts = [max(0.0, float(np.sin(beat + side))) for side in (0.0, np.pi)]  # one foot after the other
        return Pose(
            place=self.place,
            sway=self._sway(t),
            crouch=0.12 + 0.5 * self.bounce * (0.5 + 0.5 * float(np.cos(2 * beat))) if self.tempo else 0.02,
            lean=self._lean(t),
            tilt=-0.8 * self.lean * float(np.sin(beat + 0.9)),
            turn=self.turn * float(np.sin(0.5 * beat + self.face_phase[0])),
            arms=(right, left),
            wrists=(0.35 * float(np.sin(beat + phases[0][1])) * self.bounce, 0.35 * float(np.sin(beat + phases[1][1]))),
            spread=0.75 + 0.25 * float(np.sin(0.5 * beat)) if self.tempo else 0.45,
            steps=((_STANCE, self.stride * lifts[0]), (_STANCE, self.stride * lifts[1])),
            drag=self._drag(t),
            expression=self._expression(t),
        )

    def _sway(self, t: float) -> float:
        return self.sway * float(np.sin(self.tempo * t))

    def _lean(self, t: float) -> float:
        return self.lean * float(np.sin(self.tempo * t + 0.6))

    def _drag(self, t: float) -> float:
        # What hangs loosely is where the body was a moment ago.
        ago = t - 1.8
        return 0.3 * (self._sway(ago) - self._sway(t)) + 0.25 * (self._lean(ago) - self._lean(t))

    def _expression(self, t: float) -> Expression:
        rate, phase = np.array(self.face_rate), np.array(self.face_phase)
        value = np.array(self.face_rest) + np.array(self.face_swing) * np.sin(rate * t + phase)
        mouth, smile, eyes, right, down, brow = np.clip(value, (0, -1, 0, -1, -1, -1), 1).tolist()
        return Expression(mouth, smile, eyes, (right, down), brow)


def _arm_rest(rng: np.random.Generator) -> tuple[float, float]:
    lift = rng.uniform(0.4, 2.4)
    # An arm held out sideways is bent, so that the hand stays in an upright picture.
    return float(lift), float(rng.uniform(0.1, 0.6) + 0.9 * np.sin(lift))


def _arm(
    beat: float, rest: tuple[float, ...], swing: tuple[float, ...], phase: tuple[float, ...]
) -> tuple[float, float]:
    lift = rest[0] + swing[0] * np.sin(beat + phase[0]) + 0.2 * swing[0] * np.sin(2 * beat + phase[1])
    bend = rest[1] + swing[1] * np.sin(beat + phase[1])
    lift = float(np.clip(lift, 0.15, 2.75))
    # A forearm stays outside the head, so the face is seen.
    return lift, float(np.clip(bend, -0.1, min(2.0, 3.0 - lift)))

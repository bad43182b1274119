"""Who a puppet is: its colours, clothes, hair and proportions."""

from dataclasses import dataclass, replace

import numpy as np

from xdyna_train.puppet_strokes import Colour, hsv

HAIR_STYLES = ("short", "bob", "long", "tail", "bun", "curls", "cap")
PATTERNS = ("plain", "stripes", "spot", "jacket", "dots")
BOTTOMS = ("trousers", "shorts", "skirt")

_SKINS = ((255, 222, 196), (244, 200, 164), (224, 172, 130), (190, 134, 96), (146, 97, 68), (104, 68, 50))
_HAIRS = ((38, 30, 34), (74, 46, 34), (126, 76, 42), (214, 166, 92), (176, 82, 44), (150, 150, 160), (92, 36, 48))
_IRISES = ((84, 54, 36), (62, 110, 150), (70, 124, 80), (110, 96, 60), (60, 60, 70))


@dataclass(frozen=True)
class Identity:
    """A puppet's looks. Lengths in heights of the picture; face and limb numbers are factors about 1."""

    skin: Colour
    hair: Colour
    iris: Colour
    shirt: Colour
    trim: Colour  # the shirt's second colour; also the cap
    bottom_colour: Colour
    shoe: Colour
    hair_style: str  # one of HAIR_STYLES
    pattern: str  # one of PATTERNS
    bottom: str  # one of BOTTOMS
    long_sleeves: bool
    head: float  # radius
    torso: float  # hip to neck
    arm: float  # shoulder to wrist
    leg: float  # hip to ankle
    shoulder: float  # from the middle
    hip: float  # from the middle
    limb: float
    face_width: float
    chin: float
    eye: float
    eye_gap: float
    mouth: float
    nose: float
    brow: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Identity":
        """Looks drawn from rng."""
        hue = rng.random()
        dyed = rng.random() < 0.2
        return cls(
            skin=_SKINS[rng.integers(len(_SKINS))],
            hair=hsv(rng.random(), 0.55, 0.75) if dyed else _HAIRS[rng.integers(len(_HAIRS))],
            iris=_IRISES[rng.integers(len(_IRISES))],
            shirt=hsv(hue, rng.uniform(0.4, 0.8), rng.uniform(0.65, 0.97)),
            trim=hsv(hue + rng.uniform(0.25, 0.75), rng.uniform(0.1, 0.65), rng.uniform(0.8, 1.0)),
            bottom_colour=hsv(rng.random(), rng.uniform(0.2, 0.65), rng.uniform(0.3, 0.8)),
            shoe=hsv(rng.random(), rng.uniform(0.1, 0.7), rng.uniform(0.35, 0.95)),
            hair_style=HAIR_STYLES[rng.integers(len(HAIR_STYLES))],
            pattern=PATTERNS[rng.integers(len(PATTERNS))],
            bottom=BOTTOMS[rng.integers(len(BOTTOMS))],
            long_sleeves=bool(rng.random() < 0.5),
            head=float(rng.uniform(0.088, 0.1)),
            torso=float(rng.uniform(0.205, 0.232)),
            arm=float(rng.uniform(0.19, 0.212)),
            leg=float(rng.uniform(0.32, 0.36)),
            shoulder=float(rng.uniform(0.068, 0.084)),
            hip=float(rng.uniform(0.034, 0.042)),
            limb=float(rng.uniform(0.88, 1.15)),
            face_width=float(rng.uniform(0.9, 1.02)),
            chin=float(rng.uniform(1.0, 1.14)),
            eye=float(rng.uniform(0.88, 1.15)),
            eye_gap=float(rng.uniform(0.38, 0.44)),
            mouth=float(rng.uniform(0.85, 1.15)),
            nose=float(rng.uniform(0.8, 1.25)),
            brow=float(rng.uniform(0.7, 1.3)),
        )

    def with_build_of(self, other: "Identity") -> "Identity":
        """The same looks on the other's skeleton: in one pose, both have their joints and the head in one place."""
        return replace(
            self,
            head=other.head,
            chin=other.chin,
            torso=other.torso,
            arm=other.arm,
            leg=other.leg,
            shoulder=other.shoulder,
            hip=other.hip,
        )

"""Whether clothes, skin and hair keep their colours."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from xdyna_train.puppet_identity import Identity
from xdyna_train.puppet_motion import Motion
from xdyna_train.puppets import Scene, render_clip

PARTS = ("skin", "hair", "shirt", "trousers")  # trousers are whatever is worn below
Parts = Mapping[str, np.ndarray]  # [F, H, W] bool for each of PARTS

_BLACK = (0, 0, 0)
# Of a part's own colour in a pixel: its lit and shaded sides pass, its dark lines and mixed borders do not.
_SHARE = 0.6
_FEWEST = 4  # pixels; a part that shows less in a frame is not judged there


def draw_parts(
    scene: Scene, identity: Identity, motion: Motion, times: Sequence[float], height: int, width: int
) -> Parts:
    """Where each part is seen. The world is drawn again with one part in a pure colour and the others black, and once
    all in black: the difference is what the part contributes to a pixel."""
    black = replace(
        identity, skin=_BLACK, hair=_BLACK, shirt=_BLACK, trim=_BLACK, bottom_colour=_BLACK, shoe=_BLACK, iris=_BLACK
    )
    upper = replace(black, skin=(255, 0, 0), hair=(0, 255, 0), shirt=(0, 0, 255))
    lower = replace(black, bottom_colour=(255, 0, 0))
    dark, first, second = (
        np.stack([frame.rgb for frame in render_clip(scene, looks, motion, times, height, width)]).astype(np.int16)
        for looks in (black, upper, lower)
    )
    share = np.concatenate([first - dark, (second - dark)[..., :1]], -1) > 255 * _SHARE  # [F, H, W, 4]
    return {part: share[..., k] for k, part in enumerate(PARTS)}


def colour_error(frames: np.ndarray, truth: np.ndarray, region: np.ndarray) -> float:
    """Difference of a part's mean colour from the true one, absolute, mean over channels and frames, 0 to 1.

    frames, truth: [F, H, W, 3] float32 in [0, 1]. region: [F, H, W] bool, where the part is seen in the truth.
    Returns NaN where it is seen nowhere (hair under a cap).
    """
    seen = region.sum((1, 2)) >= _FEWEST
    if not seen.any():
        return float("nan")
    weight = region[seen, ..., None] / region[seen].sum((1, 2))[:, None, None, None]
    return float(np.abs(((frames[seen] - truth[seen]) * weight).sum((1, 2))).mean())

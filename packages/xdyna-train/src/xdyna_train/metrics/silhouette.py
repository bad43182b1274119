"""Where the figure is in a generated frame, and how well that fits where it should be."""

import numpy as np
import torch
from einops import rearrange

from xdyna_train.puppet_identity import Identity
from xdyna_train.puppet_strokes import outline, shade

_ROWS = 16  # of a frame at a time, which bounds the memory


def figure_colours(identity: Identity) -> np.ndarray:
    """All colours of an identity's surfaces, lit, in the shade and at their lines: [18, 3] float32 in [0, 1]."""
    surfaces = (
        identity.skin,
        identity.hair,
        identity.shirt,
        identity.trim,
        identity.bottom_colour,
        identity.shoe,
    )
    colours = [tone for colour in surfaces for tone in (colour, shade(colour), outline(colour))]
    return np.array(colours, np.float32) / 255


def find_figure(frames: np.ndarray, colours: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The pixels that show the figure rather than the scene.

    A pixel is the figure's if its colour is nearer to one of the identity's than to any that the scene alone has in
    the 3 x 3 pixels there at any time of the clip; single pixels then follow the majority of their 3 x 3. Nothing of
    the true figure's place or pose goes in, and a scene that flows out of step with the truth is still the scene.

    frames: [F, H, W, 3] float32 in [0, 1]. colours: [K, 3], of `figure_colours`. background: [T, H, W, 3], the scene
    without the figure. Returns [F, H, W] bool.
    """
    scene = np.unique(background, axis=0)  # a still scene is looked at once
    around = np.pad(scene, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(around, (1, 3, 3, 1))  # [T, H, W, 3, 1, 3, 3, 1]
    palette = torch.from_numpy(colours)
    nearer = np.empty(frames.shape[:3], bool)
    for top in range(0, frames.shape[1], _ROWS):
        rows = slice(top, top + _ROWS)
        seen = torch.from_numpy(rearrange(frames[:, rows], "f h w c -> (h w) f c"))
        places = torch.from_numpy(rearrange(around[:, rows], "t h w c 1 y x 1 -> (h w) (t y x) c"))
        figure = _nearest(seen, palette.expand(len(seen), -1, -1)) < _nearest(seen, places)
        nearer[:, rows] = rearrange(figure.numpy(), "(h w) f -> f h w", w=frames.shape[2])
    return _majority(nearer)


def intersection_over_union(found: np.ndarray, mask: np.ndarray) -> float:
    """Mean over the frames, 0 to 1. found, mask: [F, H, W] bool; 1 where both are empty."""
    both, either = (found & mask).sum((1, 2)), (found | mask).sum((1, 2))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean())


def _nearest(pixels: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Squared distance to the nearest candidate. [P, F, 3] and [P, K, 3] to [P, F]."""
    cross = torch.baddbmm((candidates**2).sum(-1)[:, None], pixels, candidates.mT, alpha=-2)  # [P, F, K]
    return cross.amin(-1) + (pixels**2).sum(-1)


def _majority(found: np.ndarray) -> np.ndarray:
    padded = np.pad(found, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    return np.lib.stride_tricks.sliding_window_view(padded, (1, 3, 3)).sum((-1, -2, -3)) >= 5

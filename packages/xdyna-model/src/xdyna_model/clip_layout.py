"""How a clip lies in memory while it passes through the denoiser."""

from dataclasses import dataclass


@dataclass
class ClipLayout:
    """Diffusers' blocks see frames folded into the batch, [B*F, ...], and do not say how many there are.

    One such object belongs to a denoiser, which sets it at the start of each call; every part that looks across
    frames holds it. This is the only place where the frame count is carried.
    """

    num_frames: int = 1

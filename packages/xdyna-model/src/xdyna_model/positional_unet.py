"""A denoiser that is told where and when a latent lies: what a model trained from scratch needs, and a pretrained one
has."""

import torch
from diffusers import (
    ModelMixin,  # noqa: F401  diffusers looks for the base class in the module of a component
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_motion_model import UNetMotionOutput
from einops import repeat
from torch import Tensor

from xdyna_model.unet import XDynaUNet, with_released_defaults

FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # cycles over the longer side
# Louder than the latents, which are noise at first and many more channels.
AMPLITUDE = 3.0
MOMENT_FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0, 6.0)  # cycles over a window
WINDOW = 16  # frames
# Of places that drift: to a query made of such a wave, the place in the reference that has come here by now is what
# its own place is to the others. From places and moments apart a model would have to learn their products first.
WAVE_FREQUENCIES = (1.0, 2.0, 4.0, 8.0)  # cycles over the longer side
# Longer sides a frame, along either coordinate; what drifts at others is told by the nearest.
SPEEDS = (-0.02, -0.015, -0.01, -0.005, 0.005, 0.01, 0.015, 0.02)
WAVE_AMPLITUDE = 2.0  # there are many
NUM_WAVES = 4 * len(WAVE_FREQUENCIES) * len(SPEEDS)
NUM_POSITION_CHANNELS = 4 * len(FREQUENCIES) + 2 * len(MOMENT_FREQUENCIES) + NUM_WAVES + 1


def position_channels(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of both coordinates, [24, height, width] float32; square pixels, the origin at the top left."""
    scale = 2 * torch.pi / max(height, width)
    rows, columns = (scale * (torch.arange(n, dtype=torch.float32, device=device) + 0.5) for n in (height, width))
    waves = [
        wave(f * axis)
        for f in FREQUENCIES
        for axis in (rows[:, None], columns[None])
        for wave in (torch.sin, torch.cos)
    ]
    return AMPLITUDE * torch.stack([wave.expand(height, width) for wave in waves])


def moment_channels(frames: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of a frame's place in the clip, [12, frames] float32; the reference is frame 0."""
    moments = 2 * torch.pi / WINDOW * torch.arange(frames, dtype=torch.float32, device=device)
    return AMPLITUDE * torch.stack([wave(f * moments) for f in MOMENT_FREQUENCIES for wave in (torch.sin, torch.cos)])


def wave_channels(frames: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the place from which what drifts at one of `SPEEDS` has come, along each coordinate,
    [128, frames, height, width] float32; in the reference, frame 0, of the place itself."""
    longer = max(height, width)
    rows, columns = ((torch.arange(n, dtype=torch.float32, device=device) + 0.5) / longer for n in (height, width))
    moments = torch.arange(frames, dtype=torch.float32, device=device)[:, None, None]
    waves = [
        wave(2 * torch.pi * f * (axis - speed * moments)).expand(frames, height, width)
        for speed in SPEEDS
        for axis in (rows[:, None], columns[None])
        for f in WAVE_FREQUENCIES
        for wave in (torch.sin, torch.cos)
    ]
    return WAVE_AMPLITUDE * torch.stack(waves)


def told_channels(frames: int, height: int, width: int, device: torch.device) -> Tensor:
    """Places, moments, waves and the flag on the reference, [1, 165, frames, height, width] float32. Made where they
    are used: a copy from the CPU in every step makes a GPU wait, and cannot be captured in a CUDA graph."""
    places = repeat(position_channels(height, width, device), "c h w -> c f h w", f=frames)
    moments = repeat(moment_channels(frames, device), "c f -> c f h w", h=height, w=width)
    flag = torch.zeros(1, frames, height, width, device=device)
    flag[:, 0] = AMPLITUDE
    return torch.cat([places, moments, wave_channels(frames, height, width, device), flag])[None]


class PositionalUNet(XDynaUNet):
    """`XDynaUNet` whose input has, beside the latents, sinusoids of the place, of the moment and of places that drift,
    and a flag on the reference.

    From scratch, attention does not find "the same place in the reference" without them, nor the place from which what
    drifts has come. Takes the configuration of `XDynaUNet`; `in_channels` counts the latents' channels and the
    `NUM_POSITION_CHANNELS` together, and ValueError is raised where it does not.
    """

    @register_to_config
    @with_released_defaults
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        told = self.config["in_channels"] - self.config["out_channels"]
        if told != NUM_POSITION_CHANNELS:
            raise ValueError(
                f"in_channels leaves {told} channels beside the latents, expected {NUM_POSITION_CHANNELS}; "
                "a model of an earlier version was told less"
            )

    def forward(self, sample: Tensor, *args, **kwargs) -> UNetMotionOutput | tuple[Tensor]:
        """As `XDynaUNet.forward`; sample: [B, C, F, h, w] with C the channels of the latents alone."""
        batch, _, frames, height, width = sample.shape
        told = told_channels(frames, height, width, sample.device).to(sample.dtype).expand(batch, -1, -1, -1, -1)
        return super().forward(torch.cat([sample, told], dim=1), *args, **kwargs)

"""A denoiser that is told where a latent lies: what a model trained from scratch needs, and a pretrained one has."""

import torch
from diffusers import (
    ModelMixin,  # noqa: F401  diffusers looks for the base class in the module of a component
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_motion_model import UNetMotionOutput
from torch import Tensor

from xdyna_model.unet import XDynaUNet, with_released_defaults

FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0)  # cycles over the longer side
# Louder than the latents, which are noise at first and many more channels.
AMPLITUDE = 3.0
NUM_POSITION_CHANNELS = 4 * len(FREQUENCIES) + 1


def position_channels(height: int, width: int) -> Tensor:
    """Sines and cosines of both coordinates, [20, height, width] float32; square pixels, the origin at the top left."""
    scale = 2 * torch.pi / max(height, width)
    rows, columns = (scale * (torch.arange(n, dtype=torch.float32) + 0.5) for n in (height, width))
    waves = [
        wave(f * axis)
        for f in FREQUENCIES
        for axis in (rows[:, None], columns[None])
        for wave in (torch.sin, torch.cos)
    ]
    return AMPLITUDE * torch.stack([wave.expand(height, width) for wave in waves])


class PositionalUNet(XDynaUNet):
    """`XDynaUNet` whose input has twenty sinusoids of the place and a flag on the reference beside the latents.

    From scratch, attention does not find "the same place in the reference" without them. Takes the configuration of
    `XDynaUNet`; `in_channels` counts the latents' channels and the twenty-one together.
    """

    @register_to_config
    @with_released_defaults
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    def forward(self, sample: Tensor, *args, **kwargs) -> UNetMotionOutput | tuple[Tensor]:
        """As `XDynaUNet.forward`; sample: [B, C, F, h, w] with C the channels of the latents alone."""
        batch, _, frames, height, width = sample.shape
        places = position_channels(height, width).to(sample)[None, :, None].expand(batch, -1, frames, -1, -1)
        flag = torch.zeros_like(sample[:, :1])
        flag[:, :, 0] = AMPLITUDE
        return super().forward(torch.cat([sample, places, flag], dim=1), *args, **kwargs)

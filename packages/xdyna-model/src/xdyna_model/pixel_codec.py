"""A VAE's place taken by a rearrangement: the nano model denoises pixels, folded into channels."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn


class PixelCodec(ModelMixin, ConfigMixin):
    """Folds patches of `patch_size` x `patch_size` pixels into channels, without loss, and has the interface of
    `AutoencoderKL`: [B, 3, H, W] in [-1, 1] to latents [B, 3 * patch_size**2, H / patch_size, W / patch_size] whose
    posterior has no spread worth mentioning (its variance is exp(-30)).
    """

    @register_to_config
    def __init__(self, patch_size: int = 4, scaling_factor: float = 1.0):
        super().__init__()
        self.spatial_compression_ratio = patch_size
        # A pipeline moves its components by their parameters' device and dtype: this one has no other use.
        self.placeholder = nn.Parameter(torch.zeros(()), requires_grad=False)

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """x: [B, 3, H, W], sides divisible by the patch size."""
        mean = F.pixel_unshuffle(x, self.config["patch_size"])
        spread = torch.full_like(mean, -30.0)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(torch.cat([mean, spread], dim=1)))

    def decode(self, z: Tensor) -> DecoderOutput:
        """z: [B, 3 * patch_size**2, h, w]. `.sample` is [B, 3, H, W]."""
        return DecoderOutput(sample=F.pixel_shuffle(z, self.config["patch_size"]))

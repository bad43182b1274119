"""What the denoiser is told of the reference picture and the prompts."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from PIL import Image
from torch import Tensor

from xdyna_model.images import fit, upright


@dataclass(frozen=True)
class EncodedReference:
    """What the denoiser is told besides the conditions. With guidance the first dimension G is 2, unconditional
    first; without it is 1.

    latent: [1, C, 1, h, w]. text: [G, T, E]. image_tokens: [G, 16, E].
    """

    latent: Tensor
    text: Tensor
    image_tokens: Tensor


class ReferenceEncoding(DiffusionPipeline):
    """The part of `XDynaPipeline` that encodes, before a denoiser runs."""

    vae_scale_factor: int  # pixels to a latent

    @property
    def default_guidance(self) -> float:
        """Guidance where a call does not say."""
        return self.config["default_guidance"]

    @torch.no_grad()
    def encode(
        self,
        reference: Image.Image | np.ndarray,
        height: int,
        width: int,
        *,
        guidance: bool | None = None,
        prompt: str = "",
        negative_prompt: str = "",
        generator: torch.Generator | None = None,
    ) -> EncodedReference:
        """Reference picture and prompts to what the denoiser takes.

        Args:
            reference: a picture of any mode, which is turned as its EXIF data say; or uint8 RGB [H, W, 3]. The VAE sees
                it cropped and scaled to height x width, CLIP its middle square, at most all of it.
            guidance: whether to encode what is guided away from, too. None is whether the model's own guidance asks.

        Raises:
            ValueError: an array of another shape or dtype, a picture of floating-point pixels, sides that are not whole
                latents or less than 8 of them, prompts that are no strings, or several generators for the one clip.
        """
        factor = self.vae_scale_factor
        if height % factor or width % factor or min(height, width) < 8 * factor:
            raise ValueError(
                f"the size is {width}x{height}, expected multiples of {factor} of at least {8 * factor} pixels"
            )
        if not isinstance(prompt, str) or not isinstance(negative_prompt, str):
            raise ValueError("prompt and negative_prompt are one string each: one clip is made")
        if not isinstance(generator, torch.Generator | None):
            raise ValueError(f"generator is a {type(generator).__name__}, expected one torch.Generator")
        picture = upright(reference) if isinstance(reference, Image.Image) else _checked(reference)
        guidance = self.default_guidance > 1 if guidance is None else guidance
        return EncodedReference(
            latent=self._encode_latent(fit(picture, height, width), generator),
            text=self.encode_text([negative_prompt, prompt] if guidance else [prompt]),
            image_tokens=self._encode_image_tokens(picture, guidance),
        )

    def _encode_latent(self, picture: np.ndarray, generator: torch.Generator | None) -> Tensor:
        pixels = torch.from_numpy(picture.copy()).to(self._execution_device, self.vae.dtype) / 127.5 - 1
        posterior = self.vae.encode(rearrange(pixels, "h w c -> 1 c h w")).latent_dist
        # Drawn in float32, so that one seed gives one picture in every dtype.
        noise = randn_tensor(posterior.mean.shape, generator, posterior.mean.device, torch.float32)
        latent = (posterior.mean + posterior.std * noise.to(posterior.mean.dtype)) * self.vae.config["scaling_factor"]
        return rearrange(latent, "b c h w -> b c 1 h w").to(self.unet.dtype)

    def encode_text(self, prompts: list[str]) -> Tensor:
        """P prompts to text tokens, [P, T, E] in the denoiser's dtype; longer ones are cut off."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(tokens.to(self._execution_device))[0].to(self.unet.dtype)

    def _encode_image_tokens(self, picture: np.ndarray, guidance: bool) -> Tensor:
        # Without its layout a picture of 1 or 3 rows is taken for one of channels first.
        pixels = self.feature_extractor(picture, input_data_format="channels_last", return_tensors="pt").pixel_values
        pixels = pixels.to(self._execution_device, self.image_encoder.dtype)
        # The unconditional tokens come of a black input, they are not zeros themselves.
        pixels = torch.cat([torch.zeros_like(pixels), pixels]) if guidance else pixels
        features = self.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
        return self.image_projection(features.to(self.image_projection.dtype)).to(self.unet.dtype)


def _checked(picture: np.ndarray) -> np.ndarray:
    expected = "expected one PIL picture or uint8 array [H, W, 3]"
    if not hasattr(picture, "dtype"):
        raise ValueError(f"reference is a {type(picture).__name__}, {expected}")
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f"reference is {picture.dtype} {list(picture.shape)}, {expected}")
    return picture

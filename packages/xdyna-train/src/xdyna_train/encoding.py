"""What the frozen encoders make of a batch."""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from xdyna_model.pipeline import XDynaPipeline

from xdyna_train.fusion import Batch


@dataclass
class Encoded:
    """reference: [B, C, 1, h, w] latents; frames, noise: [B, C, F, h, w]; text: [B, T, E];
    image_features: [B, L, E'] hidden states. float32."""

    reference: Tensor
    frames: Tensor
    noise: Tensor
    text: Tensor
    image_features: Tensor


# Encoded together: hundreds of small frames, or four of full size.
_PIXELS_AT_ONCE = 2**21


class Encoders:
    """VAE, CLIP and text encoder of a pipeline; none of them is trained. The prompt is empty."""

    def __init__(self, pipeline: XDynaPipeline) -> None:
        self._vae, self._image_encoder = pipeline.vae, pipeline.image_encoder
        self._feature_extractor = pipeline.feature_extractor
        self._shared_noise = pipeline.config["shared_noise"]
        for frozen in (pipeline.vae, pipeline.image_encoder, pipeline.text_encoder):
            frozen.eval().requires_grad_(False)
        with torch.no_grad():
            self._text = pipeline.encode_text([""]).float()

    def preprocess(self, picture: np.ndarray) -> Tensor:
        """[H, W, 3] uint8 to [3, s, s], as the image encoder takes it."""
        pixels = self._feature_extractor(picture, input_data_format="channels_last", return_tensors="pt").pixel_values
        return pixels[0]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Encoded:
        clips = torch.cat([batch.reference[:, None], batch.frames], dim=1)  # [B, 1+F, 3, H, W]
        frames = clips.flatten(0, 1)
        encoded = [
            self._vae.encode((part.float() / 127.5 - 1).to(self._vae.dtype)).latent_dist
            for part in frames.split(max(1, _PIXELS_AT_ONCE // frames[0, 0].numel()))
        ]
        mean, std = (
            torch.cat([getattr(part, name) for part in encoded]).unflatten(0, clips.shape[:2])
            for name in ("mean", "std")
        )
        drawn, noise = self._draw(batch.noise_seeds, mean)
        latents = (mean + std * drawn).float() * self._vae.config["scaling_factor"]
        noise = noise[:, :1].expand_as(noise[:, 1:]) if self._shared_noise else noise[:, 1:]
        features = self._image_encoder(batch.clip_pixels.to(self._image_encoder.dtype), output_hidden_states=True)
        latents = rearrange(latents, "b f c h w -> b c f h w")
        return Encoded(
            reference=latents[:, :, :1],
            frames=latents[:, :, 1:],
            noise=rearrange(noise, "b f c h w -> b c f h w"),
            text=self._text.expand(len(clips), -1, -1),
            image_features=features.hidden_states[-2].float(),
        )

    @staticmethod
    def _draw(seeds: Tensor, like: Tensor) -> Tensor:
        """[2, *like.shape] of standard normal numbers. Every clip draws from a generator of its own, so that it does
        not matter which process encodes it; on its device, since a CPU takes longer to draw than a GPU to train."""
        generator = torch.Generator(like.device)
        draws = []
        for seed in seeds.tolist():
            generator.manual_seed(seed)
            draws.append(torch.randn(2, *like.shape[1:], generator=generator, device=like.device))
        return torch.stack(draws, dim=1)

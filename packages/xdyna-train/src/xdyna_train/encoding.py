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
        return self._feature_extractor(images=picture, return_tensors="pt").pixel_values[0]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Encoded:
        """Every clip draws from a generator of its own, so that it does not matter which process encodes it."""
        clips = torch.cat([batch.reference[:, None], batch.frames], dim=1)  # [B, 1+F, 3, H, W]
        latents, noises = [], []
        for clip, seed in zip(clips, batch.noise_seeds.tolist(), strict=True):
            generator = torch.Generator().manual_seed(seed)
            posterior = self._vae.encode(clip.to(self._vae.dtype)).latent_dist
            drawn, noise = (torch.randn(posterior.mean.shape, generator=generator).to(clip.device) for _ in range(2))
            latents.append((posterior.mean + posterior.std * drawn).float() * self._vae.config["scaling_factor"])
            noises.append(noise[:1].expand_as(noise[1:]) if self._shared_noise else noise[1:])
        features = self._image_encoder(batch.clip_pixels.to(self._image_encoder.dtype), output_hidden_states=True)
        latents = rearrange(torch.stack(latents), "b f c h w -> b c f h w")
        return Encoded(
            reference=latents[:, :, :1],
            frames=latents[:, :, 1:],
            noise=rearrange(torch.stack(noises), "b f c h w -> b c f h w"),
            text=self._text.expand(len(clips), -1, -1),
            image_features=features.hidden_states[-2].float(),
        )

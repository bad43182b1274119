"""XDynaPipeline: a reference picture and the conditions of a driving video in, frames out."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna_model.conditions import Conditions
from xdyna_model.denoising import Denoising
from xdyna_model.hub import download
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.pixel_codec import PixelCodec
from xdyna_model.positional_unet import PositionalUNet
from xdyna_model.unet import XDynaUNet

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class XDynaPipelineOutput(BaseOutput):
    """frames: as in diffusers' video pipelines, one clip. "pil": a list with a list of pictures; "np": float32
    [1, F, H, W, 3] in [0, 1]; "pt": [1, F, 3, H, W] in [0, 1]; "latent": [1, C, F, h, w].
    """

    frames: list[list[Image.Image]] | np.ndarray | Tensor


class XDynaPipeline(Denoising):
    """Human image animation with X-Dyna. The components are those of Stable Diffusion 1.5 pipelines, and:

    unet: the `XDynaUNet`. controlnet, controlnet_face: the pose and the S-Face `ControlNetModel`s.
    image_encoder, feature_extractor, image_projection: CLIP and the resampler that make the image tokens.
    default_steps, default_guidance: what a call takes that does not say, saved with the model; the released one's.
    shared_noise: whether all frames start from one noise, as some models are trained (after Ge et al. 2023), so that
        what stands still does not flicker; the released one's frames each have their own.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->image_projection->unet->vae"
    _exclude_from_cpu_offload = ("controlnet", "controlnet_face")

    def __init__(
        self,
        vae: AutoencoderKL | PixelCodec,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: XDynaUNet | PositionalUNet,
        controlnet: ControlNetModel,
        controlnet_face: ControlNetModel,
        image_encoder: CLIPVisionModelWithProjection,
        feature_extractor: CLIPImageProcessorPil,
        image_projection: ImageProjection,
        scheduler: DDIMScheduler,
        default_steps: int = 25,
        default_guidance: float = 7.5,
        shared_noise: bool = False,
    ):
        super().__init__()
        self.register_to_config(
            default_steps=default_steps, default_guidance=default_guidance, shared_noise=shared_noise
        )
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            controlnet=controlnet,
            controlnet_face=controlnet_face,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            image_projection=image_projection,
            scheduler=scheduler,
        )
        self.vae_scale_factor = (
            vae.spatial_compression_ratio
            if isinstance(vae, PixelCodec)
            else 2 ** (len(vae.config["block_out_channels"]) - 1)
        )
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs: Any) -> str:
        """Folder in the hub's cache of a model with the id "owner/name", as `from_pretrained` asks for it; all its
        weights, whatever the variant. Of diffusers' keywords for where and how, those of `hub.download` are heeded.
        diffusers' own wants code of this package's parts from the hub; this brings none. Raises what `hub.download`
        does.
        """
        asked = inspect.signature(download).parameters.keys() & kwargs.keys()
        return str(download(pretrained_model_name, **{name: kwargs[name] for name in asked}))

    @property
    def default_height(self) -> int:
        """Height in pixels that the denoiser was made for."""
        return _sides(self.unet.config["sample_size"])[0] * self.vae_scale_factor

    @property
    def default_width(self) -> int:
        """Width in pixels that the denoiser was made for."""
        return _sides(self.unet.config["sample_size"])[1] * self.vae_scale_factor

    @torch.no_grad()
    def iter_decoded(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents [1, C, F, h, w] to one frame after the other, [3, H, W] in [0, 1], on the device."""
        latents = latents.to(self.vae.dtype) / self.vae.config["scaling_factor"]
        for index in range(latents.shape[2]):
            frame = self.vae.decode(latents[:, :, index]).sample
            yield torch.as_tensor(self.video_processor.postprocess(frame, "pt"))[0]

    def decode(self, latents: Tensor, output_type: str = "pt") -> list[list[Image.Image]] | np.ndarray | Tensor:
        """Latents [1, C, F, h, w] to frames as `XDynaPipelineOutput` describes them. "pil" and "np" leave the device
        one by one. Raises ValueError for another `output_type` than "pil", "np" and "pt"."""
        _check_output_type(output_type, OUTPUT_TYPES[:3])
        frames = self.iter_decoded(latents)
        if output_type == "pt":
            return torch.stack(list(frames))[None]
        arrays = (VideoProcessor.pt_to_numpy(frame[None])[0] for frame in frames)
        if output_type == "pil":
            return [[VideoProcessor.numpy_to_pil(array)[0] for array in arrays]]
        return np.stack(list(arrays))[None]

    @torch.no_grad()
    def __call__(
        self,
        reference: Image.Image | np.ndarray,
        conditions: Conditions,
        *,
        prompt: str = "",
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        window_size: int = 16,
        window_overlap: int = 4,
        wrap: bool = True,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> XDynaPipelineOutput | tuple:
        """Animates the reference.

        Args:
            reference: the picture to animate, as `encode` takes it; it is cropped and scaled to the size of the
                conditions.
            conditions: pose and face maps of the frames to make; their size is the size of the result.
            num_inference_steps: None is the model's own, 25 for the released one.
            guidance_scale: strength of classifier-free guidance; up to 1 there is none, at half the cost. None is the
                model's own, 7.5 for the released one.
            window_size, window_overlap, wrap, latents, callback_on_step_end, callback_on_step_end_tensor_inputs: see
                `denoise`.
            generator: source of all randomness. One seed on one device gives the same result, bit for bit.
            output_type: "pil", "np", "pt" or "latent".

        Raises:
            ValueError: a number or a size is out of its range, or what `encode` and `denoise` raise.
        """
        num_inference_steps = self.default_steps if num_inference_steps is None else num_inference_steps
        guidance_scale = self.default_guidance if guidance_scale is None else guidance_scale
        guidance = guidance_scale > 1
        self._check_numbers(num_inference_steps, guidance_scale, window_size, window_overlap)
        _check_output_type(output_type, OUTPUT_TYPES)
        encoded = self.encode(
            reference,
            conditions.height,
            conditions.width,
            guidance=guidance,
            prompt=prompt,
            negative_prompt=negative_prompt,
            generator=generator,
        )
        latents = self.denoise(
            encoded,
            conditions,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            window_size=window_size,
            window_overlap=window_overlap,
            wrap=wrap,
            latents=latents,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        frames = latents if output_type == "latent" else self.decode(latents, output_type)
        self.maybe_free_model_hooks()
        return XDynaPipelineOutput(frames=frames) if return_dict else (frames,)


def _check_output_type(output_type: str, known: Sequence[str]) -> None:
    if output_type not in known:
        raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(known)}")


def _sides(sample_size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return height, width

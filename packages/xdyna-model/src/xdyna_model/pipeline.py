"""XDynaPipeline: a reference picture and the conditions of a driving video in, frames out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from einops import rearrange
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna_model import windows
from xdyna_model.conditions import Conditions
from xdyna_model.controlnets import control_residuals
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.pixel_codec import PixelCodec
from xdyna_model.reference_encoding import EncodedReference, ReferenceEncoding
from xdyna_model.sampling import initial_latents
from xdyna_model.unet import XDynaUNet

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Schedule = Callable[[int], list[list[int]]]


@dataclass
class XDynaPipelineOutput(BaseOutput):
    """frames: as in diffusers' video pipelines, one clip. "pil": a list with a list of pictures; "np": float32
    [1, F, H, W, 3] in [0, 1]; "pt": [1, F, 3, H, W] in [0, 1]; "latent": [1, C, F, h, w].
    """

    frames: list[list[Image.Image]] | np.ndarray | Tensor


class XDynaPipeline(ReferenceEncoding):
    """Human image animation with X-Dyna. The components are those of Stable Diffusion 1.5 pipelines, and:

    unet: the `XDynaUNet`. controlnet, controlnet_face: the pose and the S-Face `ControlNetModel`s.
    image_encoder, feature_extractor, image_projection: CLIP and the resampler that make the image tokens.
    default_steps, default_guidance: what a call takes that does not say, saved with the model; the released one's.
    shared_noise: whether all frames start from one noise, as some models are trained (after Ge et al. 2023), so that
        what stands still does not flicker; the released one's frames each have their own.
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->image_projection->unet->vae"
    _exclude_from_cpu_offload = ("controlnet", "controlnet_face")
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        vae: AutoencoderKL | PixelCodec,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: XDynaUNet,
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

    @property
    def default_height(self) -> int:
        """Height in pixels that the denoiser was made for."""
        return _sides(self.unet.config["sample_size"])[0] * self.vae_scale_factor

    @property
    def default_width(self) -> int:
        """Width in pixels that the denoiser was made for."""
        return _sides(self.unet.config["sample_size"])[1] * self.vae_scale_factor

    @property
    def default_steps(self) -> int:
        """Denoising steps where a call does not say."""
        return self.config["default_steps"]

    @torch.no_grad()
    def prepare_latents(
        self, encoded: EncodedReference, num_frames: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Latents to start from, [1, C, F, h, w], once the scheduler has its timesteps."""
        _, channels, _, height, width = encoded.latent.shape
        drawn = 1 if self.config["shared_noise"] else num_frames
        shape, device, dtype = (1, channels, drawn, height, width), encoded.latent.device, encoded.latent.dtype
        draws = generator.device if generator is not None else device
        mask = torch.rand(shape, generator=generator, device=draws) >= 0.5
        noise = randn_tensor(shape, generator, device, torch.float32)
        start = self.scheduler.timesteps[0]
        latents = initial_latents(encoded.latent, mask.to(device, dtype), noise.to(dtype), self.scheduler, start)
        return latents.expand(-1, -1, num_frames, -1, -1)

    @torch.no_grad()
    def denoise(
        self,
        encoded: EncodedReference,
        conditions: Conditions,
        *,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        window_size: int = 16,
        window_overlap: int = 4,
        wrap: bool = True,
        schedule: Schedule | None = None,
        latents: Tensor | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Tensor:
        """The denoising loop.

        Args:
            encoded: of `encode`; what it holds decides whether guidance is applied.
            num_inference_steps, guidance_scale: None is the model's own.
            window_size, window_overlap, wrap: long clips are denoised in overlapping windows, rotated by a random
                offset at each step. wrap=True joins the end to the start (clips that loop), as the released code
                does; wrap=False never does.
            schedule: windows by step, in place of the three above.
            latents: [1, C, F, h, w] to start from, in place of `prepare_latents`.
            callback_on_step_end: called as `f(pipeline, step, timestep, {"latents": ...})`; a "latents" in the dict
                it returns replaces them.
            callback_on_step_end_tensor_inputs: what the dict has, which is "latents" or nothing.

        Returns:
            [1, C, F, h, w] latents.

        Raises:
            ValueError: `latents` of another shape, or tensors asked for that there are not.
        """
        if other := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs has {sorted(other)}, there are only latents")
        num_inference_steps = self.default_steps if num_inference_steps is None else num_inference_steps
        guidance_scale = self.default_guidance if guidance_scale is None else guidance_scale
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        frames = conditions.num_frames
        if latents is None:
            latents = self.prepare_latents(encoded, frames, generator)
        elif latents.shape != (expected := (*encoded.latent.shape[:2], frames, *encoded.latent.shape[3:])):
            raise ValueError(f"latents are {list(latents.shape)}, expected {list(expected)}")
        current = latents.to(encoded.latent)
        schedule = schedule or self._random_windows(frames, window_size, window_overlap, wrap, generator)
        with self.progress_bar(total=num_inference_steps) as progress:  # pyright: ignore[reportCallIssue]
            for step, timestep in enumerate(self.scheduler.timesteps):
                noise = self._predict_noise(encoded, conditions, current, timestep, schedule(step), guidance_scale)
                current: Tensor = self.scheduler.step(noise, timestep, current, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, current)
                    changed = callback_on_step_end(self, step, timestep, tensors)
                    current = changed["latents"] if changed and "latents" in changed else current
                progress.update()
        return current

    def _predict_noise(
        self,
        encoded: EncodedReference,
        conditions: Conditions,
        latents: Tensor,
        timestep: Tensor,
        step_windows: list[list[int]],
        guidance_scale: float,
    ) -> Tensor:
        """Mean prediction of all windows that see a frame, guided. [1, C, F, h, w]."""
        batch = encoded.text.shape[0]
        total = torch.zeros_like(latents.expand(batch, -1, -1, -1, -1))
        count = latents.new_zeros(latents.shape[2])
        for window in step_windows:
            # The reference has no noise, so a scheduler that scales by the noise has nothing to do with it.
            noisy = self.scheduler.scale_model_input(latents[:, :, window], timestep)
            sample = torch.cat([encoded.latent, noisy], dim=2).expand(batch, -1, -1, -1, -1)
            seen = conditions[window]
            nets = [
                (self.controlnet, seen.pose_map(sample.device, sample.dtype)),
                (self.controlnet_face, seen.face_map(sample.device, sample.dtype)),
            ]
            down, mid = control_residuals(nets, sample, timestep, encoded.text)
            predicted = self.unet(sample, timestep, encoded.text, encoded.image_tokens, down, mid).sample
            total[:, :, window] += predicted[:, :, 1:]
            count[window] += 1
        mean = total / rearrange(count, "f -> f 1 1")
        if batch == 1:
            return mean
        unconditional, conditional = mean.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _random_windows(
        self, num_frames: int, size: int, overlap: int, wrap: bool, generator: torch.Generator | None
    ) -> Schedule:
        device = generator.device if generator is not None else None

        def schedule(step: int) -> list[list[int]]:
            offset = int(torch.randint(size, (), generator=generator, device=device))
            if wrap:
                return windows.uniform(num_frames, size, overlap, offset=offset)
            return windows.sliding(num_frames, size, overlap, offset=offset)

        return schedule

    @torch.no_grad()
    def iter_decoded(self, latents: Tensor) -> Iterator[Tensor]:
        """Latents [1, C, F, h, w] to one frame after the other, [3, H, W] in [0, 1], on the device."""
        latents = latents.to(self.vae.dtype) / self.vae.config["scaling_factor"]
        for index in range(latents.shape[2]):
            frame = self.vae.decode(latents[:, :, index]).sample
            yield torch.as_tensor(self.video_processor.postprocess(frame, "pt"))[0]

    def decode(self, latents: Tensor, output_type: str = "pt") -> list[list[Image.Image]] | np.ndarray | Tensor:
        """Latents [1, C, F, h, w] to frames as `XDynaPipelineOutput` describes them. "pil" and "np" leave the device
        one by one."""
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
        callback_on_step_end: Callable | None = None,
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
        self._check(conditions, num_inference_steps, window_size, output_type)
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

    def _check(self, conditions: Conditions, steps: int, window_size: int, output_type: str) -> None:
        factor, smallest = self.vae_scale_factor, 8 * self.vae_scale_factor
        height, width, longest = conditions.height, conditions.width, self.unet.config["motion_max_seq_length"]
        if height % factor or width % factor or min(height, width) < smallest:
            raise ValueError(
                f"conditions are {width}x{height}, expected multiples of {factor} of at least {smallest} pixels"
            )
        most = self.scheduler.config["num_train_timesteps"] - self.scheduler.config["steps_offset"]
        if not 1 <= steps <= most:
            raise ValueError(f"num_inference_steps is {steps}, expected 1 to {most}")
        if not 1 <= window_size <= longest:
            raise ValueError(f"window_size is {window_size}, expected 1 to {longest}, what the motion modules know")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}, expected one of {', '.join(OUTPUT_TYPES)}")


def _sides(sample_size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return height, width

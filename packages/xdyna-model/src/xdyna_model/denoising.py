"""From noise to the latents of a clip: the denoising loop, with guidance, over windows of long clips."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from torch import Tensor

from xdyna_model import windows
from xdyna_model.conditions import Conditions
from xdyna_model.controlnets import control_residuals
from xdyna_model.reference_encoding import EncodedReference, ReferenceEncoding
from xdyna_model.sampling import initial_latents, most_steps, step_options

Schedule = Callable[[int], list[list[int]]]


class Denoising(ReferenceEncoding):
    """The part of `XDynaPipeline` that denoises what is encoded."""

    _callback_tensor_inputs = ("latents",)

    @property
    def default_steps(self) -> int:
        """Denoising steps where a call does not say."""
        return self.config["default_steps"]

    @property
    def num_timesteps(self) -> int:
        """Calls of the denoiser for each window in the `denoise` that began last, as diffusers' callbacks ask for."""
        return self._num_timesteps

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
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
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
            callback_on_step_end_tensor_inputs: what the dict has, which is "latents" or nothing; diffusers' own kind of
                callbacks says so itself.

        Returns:
            [1, C, F, h, w] latents.

        Raises:
            ValueError: a number out of its range, conditions of another size than the reference was encoded at,
                `latents` of another shape, given or from the callback, a schedule that leaves frames out, or tensors
                asked for that there are not.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        if other := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs has {sorted(other)}, there are only latents")
        num_inference_steps = self.default_steps if num_inference_steps is None else num_inference_steps
        guidance_scale = self.default_guidance if guidance_scale is None else guidance_scale
        self._check_numbers(num_inference_steps, guidance_scale, window_size, window_overlap)
        size = tuple(side * self.vae_scale_factor for side in encoded.latent.shape[3:])
        if size != (conditions.height, conditions.width):
            shown = f"{conditions.width}x{conditions.height}"
            raise ValueError(f"conditions are {shown}, but the reference was encoded at {size[1]}x{size[0]}")
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        frames = conditions.num_frames
        if latents is None:
            latents = self.prepare_latents(encoded, frames, generator)
        elif latents.shape != (expected := (*encoded.latent.shape[:2], frames, *encoded.latent.shape[3:])):
            raise ValueError(f"latents are {list(latents.shape)}, expected {list(expected)}")
        current = latents.to(encoded.latent)
        schedule = schedule or self._random_windows(frames, window_size, window_overlap, wrap, generator)
        options = step_options(self.scheduler, generator)
        # Some schedulers ask for several calls a step.
        self._num_timesteps = len(self.scheduler.timesteps)
        with self.progress_bar(total=self._num_timesteps) as progress:  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
            for step, timestep in enumerate(self.scheduler.timesteps):
                step_windows = schedule(step)
                if left_out := sorted(set(range(frames)).difference(*step_windows)):
                    raise ValueError(f"no window of step {step} has the frames {left_out}")
                noise = self._predict_noise(encoded, conditions, current, timestep, step_windows, guidance_scale)
                current: Tensor = self.scheduler.step(noise, timestep, current, **options)[0]
                if callback_on_step_end is not None:
                    tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, current)
                    changed = callback_on_step_end(self, step, timestep, tensors)
                    current = changed["latents"] if changed and "latents" in changed else current
                    if current.shape != latents.shape:
                        shown = f"{list(current.shape)}, expected {list(latents.shape)}"
                        raise ValueError(f"the callback's latents are {shown}")
                progress.update()
        return current

    def _check_numbers(self, steps: int, guidance_scale: float, window_size: int, window_overlap: int) -> None:
        most = most_steps(self.scheduler)
        if not _is_whole(steps) or not 1 <= steps <= most:
            raise ValueError(f"num_inference_steps is {steps}, expected a whole number from 1 to {most}")
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale is {guidance_scale}, expected a number; 1 and below turn it off")
        longest = self.unet.config["motion_max_seq_length"]
        if not _is_whole(window_size) or not 1 <= window_size <= longest:
            known = f"a whole number from 1 to {longest}, what the motion modules know"
            raise ValueError(f"window_size is {window_size}, expected {known}")
        if not _is_whole(window_overlap):
            raise ValueError(f"window_overlap is {window_overlap}, expected a whole number")

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


def _is_whole(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)

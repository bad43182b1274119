"""Whether the components of a pipeline fit each other, and can do what the pipeline asks of them."""

import copy
import sys
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from xdyna_model.errors import InputError
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.pixel_codec import PixelCodec
from xdyna_model.sampling import most_steps, step_options
from xdyna_model.unet import XDynaUNet


def check_fit(
    vae: AutoencoderKL | PixelCodec,
    text_encoder: CLIPTextModel,
    unet: XDynaUNet,
    controlnet: ControlNetModel,
    controlnet_face: ControlNetModel,
    image_encoder: CLIPVisionModelWithProjection,
    image_projection: ImageProjection,
    **others: object,
) -> None:
    """Raises InputError where one component makes other channels than the next takes, before the denoising does, and
    where the ControlNets are swapped. Takes the components of a pipeline; the `others` fit any."""
    tokens = text_encoder.config.hidden_size
    is_pixels = isinstance(vae, PixelCodec)
    latents = 3 * vae.config["patch_size"] ** 2 if is_pixels else vae.config["latent_channels"]
    for maker, made, taker, taken in (
        ("image_encoder", image_encoder.config.hidden_size, "image_projection", image_projection.config["embed_dims"]),
        ("text_encoder", tokens, "unet", unet.config["cross_attention_dim"]),
        ("image_projection", image_projection.config["output_dims"], "unet", unet.config["cross_attention_dim"]),
        ("text_encoder", tokens, "controlnet", controlnet.config["cross_attention_dim"]),
        ("text_encoder", tokens, "controlnet_face", controlnet_face.config["cross_attention_dim"]),
        ("vae", latents, "unet", unet.config["out_channels"]),  # in_channels may count places and moments as well
        ("vae", latents, "controlnet", controlnet.config["in_channels"]),
        ("vae", latents, "controlnet_face", controlnet_face.config["in_channels"]),
        ("pose_map", 3, "controlnet", controlnet.config["conditioning_channels"]),
        ("face_map", 6, "controlnet_face", controlnet_face.config["conditioning_channels"]),
    ):
        if any(number != made for number in (taken if isinstance(taken, list | tuple) else [taken])):  # of each level
            raise InputError(f"{maker} makes {made} channels, {taker} takes {taken}; take both from one model")


def check_defaults(index: Mapping[str, Any]) -> None:
    """Raises InputError where a default in a pipeline's index has a wrong type or is out of range; it may lack them."""
    steps, guidance = index.get("default_steps", 1), index.get("default_guidance", 1)
    shared = index.get("shared_noise", False)
    if type(steps) is not int or steps < 1:
        raise InputError(f"default_steps is {steps!r}, expected a whole number of at least 1")
    if type(guidance) not in (int, float) or not 0 <= guidance <= sys.float_info.max:
        raise InputError(f"default_guidance is {guidance!r}, expected a finite number of at least 0")
    if type(shared) is not bool:
        raise InputError(f"shared_noise is {shared!r}, expected true or false")


def check_use(scheduler: Any, feature_extractor: Any, default_steps: int) -> None:
    """Raises InputError where a pipeline cannot work with one of the two, or the scheduler has fewer steps."""
    kind = type(feature_extractor).__name__
    if not kind.startswith("CLIPImageProcessor"):  # one of several, by what else is installed
        raise InputError(f"feature_extractor is a {kind}, expected CLIP's image processor, as CLIPImageProcessorPil")
    try:
        most = most_steps(scheduler)
        if default_steps <= most:
            _rehearse(copy.deepcopy(scheduler), default_steps)
    except Exception as error:  # each kind of scheduler fails in its own way
        raise InputError(
            f"scheduler is a {type(scheduler).__name__} that cannot denoise ({_reason(error)}), "
            "expected one of diffusers that can, such as a DDIMScheduler with its defaults"
        ) from error
    if default_steps > most:
        raise InputError(f"default_steps is {default_steps}, expected at most {most}, what the scheduler has")


def check_steps(scheduler: Any, steps: int) -> None:
    """Raises InputError where a scheduler that passed `check_use` cannot do that many steps, as asked with --steps."""
    name, most = type(scheduler).__name__, most_steps(scheduler)
    if steps > most:
        raise InputError(f"--steps {steps}: the model's {name} has at most {most}")
    try:
        _rehearse(copy.deepcopy(scheduler), steps)
    except Exception as error:  # each kind of scheduler fails in its own way
        raise InputError(f"--steps {steps}: the model's {name} cannot do that many ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _rehearse(scheduler: Any, steps: int) -> None:
    """All that `XDynaPipeline` asks of a scheduler, once."""
    sample = torch.zeros(1, 1, 1, 1, 1)
    scheduler.set_timesteps(steps, device="cpu")
    first = scheduler.timesteps[0]
    noisy = scheduler.add_noise(sample, sample, first.reshape(1))
    options = step_options(scheduler, torch.Generator())
    scheduler.step(scheduler.scale_model_input(noisy, first), first, noisy, **options)[0]

"""Whether the components of a pipeline fit each other."""

from diffusers import AutoencoderKL, ControlNetModel
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from xdyna_model.errors import InputError
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.pixel_codec import PixelCodec
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

"""The nano model: the whole system at a size that two CPU cores train in an hour or two and run in seconds.

It differs from the released model in size, in having pixels for latents (`PixelCodec`), in being told where and when a
latent lies (`PositionalUNet`), and in predicting the clean clip itself: it is trained from scratch, without Stable
Diffusion.
"""

from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler
from diffusers.models.attention_processor import Attention
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPVisionModelWithProjection

from xdyna_model import tiny
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.pixel_codec import PixelCodec
from xdyna_model.positional_encoding import NUM_POSITION_CHANNELS, NUM_WAVES, still_rows
from xdyna_model.positional_unet import DriftingAdapter, PositionalAdapter, PositionalUNet

PATCH = 4
LATENT_CHANNELS = 3 * PATCH**2
BACKBONE: dict[str, Any] = {
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": tiny.WIDTH,
}
# Channels and attention heads of the three levels.
CPU_SIZE: dict[str, Any] = {"block_out_channels": (32, 96, 128), "num_attention_heads": (2, 4, 4)}
GPU_SIZE: dict[str, Any] = {"block_out_channels": (64, 96, 96), "num_attention_heads": (4, 4, 4)}
# Of queries and keys alike: what the place makes of one also meets what the content makes of the other.
PLACE_GAIN = 3.0
TEXT_TOKENS = 8  # the prompt is empty in training
CONTROL: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "down_block_types": ("DownBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2D",
    "conditioning_embedding_out_channels": (8, 16, 32),
}


def nano_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas with no signal left at the last timestep, from which sampling starts."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def nano_pipeline(seed: int = 0, size: dict[str, Any] = CPU_SIZE) -> XDynaPipeline:
    """The nano model before training: random weights drawn from `seed`, float32 on the CPU. size: `CPU_SIZE`, or
    `GPU_SIZE`, which has more channels at full size and fewer below."""
    control = CONTROL | BACKBONE | {"block_out_channels": size["block_out_channels"]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = XDynaPipeline(
            vae=PixelCodec(PATCH),
            text_encoder=CLIPTextModel(tiny.text_config(TEXT_TOKENS)),
            tokenizer=tiny.tokenizer(TEXT_TOKENS),
            unet=PositionalUNet(
                sample_size=(28, 16),
                in_channels=LATENT_CHANNELS + NUM_POSITION_CHANNELS,
                out_channels=LATENT_CHANNELS,
                down_block_types=("CrossAttnDownBlockMotion",) * 3,
                up_block_types=("CrossAttnUpBlockMotion",) * 3,
                motion_num_attention_heads=4,
                use_motion_mid_block=True,
                **BACKBONE,
                **size,
            ),
            controlnet=ControlNetModel(conditioning_channels=3, **control),
            controlnet_face=ControlNetModel(conditioning_channels=6, **control),
            image_encoder=CLIPVisionModelWithProjection(tiny.vision_config()),
            feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
            image_projection=ImageProjection(
                embed_dims=tiny.WIDTH, output_dims=tiny.WIDTH, hidden_dims=tiny.WIDTH, depth=1, dim_head=8, heads=4
            ),
            scheduler=nano_scheduler(),
            default_steps=5,
            default_guidance=1.0,
        )
        tiny.start_from_scratch(pipeline)
        _look_at_places(pipeline.unet)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    return pipeline


@torch.no_grad()
def _look_at_places(unet: PositionalUNet) -> None:
    """Starts reference queries and keys so that each head looks at the place in the reference from which what its token
    shows has come: at its own place, until tokens guess that it drifts. Found from random queries, that took most of
    the training."""
    places = PLACE_GAIN * still_rows()
    for module in unet.modules():
        if isinstance(module, Attention) and isinstance(module.processor, PositionalAdapter):
            adapter, size = module.processor, module.inner_dim // module.heads
            for layer in (adapter.to_q_place, adapter.to_k_place, adapter.to_q_ref_place):
                layer.weight.zero_()
            if isinstance(adapter, DriftingAdapter):
                adapter.to_q_ref_drift.weight.zero_()
            for head in range(module.heads):
                rows = slice(head * size, head * size + NUM_WAVES)
                adapter.to_k_place.weight[rows] = places
                adapter.to_q_ref_place.weight[rows] = places
                if isinstance(adapter, DriftingAdapter):
                    adapter.to_q_ref_drift.weight[rows] = PLACE_GAIN * torch.eye(NUM_WAVES)

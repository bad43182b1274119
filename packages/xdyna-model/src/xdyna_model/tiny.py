"""The tiny model: every component of the released model, at the smallest size that still has all its parts.

Its weights are random, drawn from a seed: it is there to try code on, not to look at.
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from xdyna_model.dynamics_adapter import DynamicsAdapter
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.sampling import released_scheduler
from xdyna_model.unet import XDynaUNet

WIDTH = 32  # channels of text and image tokens, and of both CLIP towers
BACKBONE = {
    "block_out_channels": (32, 64, 96, 96),
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "cross_attention_dim": WIDTH,
}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (16, 32, 32, 32),
    "norm_num_groups": 8,
}
CONDITION_EMBEDDING = {"conditioning_embedding_out_channels": (8, 16, 32, 32)}


def tiny_pipeline(seed: int = 0) -> XDynaPipeline:
    """A whole pipeline with random weights drawn from `seed`, float32 on the CPU. Leaves global randomness alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = XDynaPipeline(
            vae=AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(text_config()),
            tokenizer=tokenizer(),
            unet=XDynaUNet(sample_size=(28, 16), **BACKBONE),
            controlnet=ControlNetModel(conditioning_channels=3, **CONDITION_EMBEDDING, **BACKBONE),
            controlnet_face=ControlNetModel(conditioning_channels=6, **CONDITION_EMBEDDING, **BACKBONE),
            image_encoder=CLIPVisionModelWithProjection(vision_config()),
            feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
            image_projection=ImageProjection(
                embed_dims=WIDTH, output_dims=WIDTH, hidden_dims=WIDTH, depth=2, dim_head=4, heads=12
            ),
            scheduler=released_scheduler(),
        )
        start_from_scratch(pipeline)
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    return pipeline


def start_from_scratch(pipeline: XDynaPipeline) -> None:
    """Gives weights to what starts at zero so as not to disturb a trained backbone: there is none to disturb."""
    for net in (pipeline.controlnet, pipeline.controlnet_face):
        outputs = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
        for convolution in outputs:
            convolution.reset_parameters()
    for module in pipeline.unet.modules():
        if isinstance(module, DynamicsAdapter):
            module.to_out_ref.reset_parameters()


def _tower() -> dict:
    return {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}


def text_config(length: int = 77) -> CLIPTextConfig:
    """A text encoder of `length` tokens for `tokenizer(length)`."""
    words = _vocabulary()
    return CLIPTextConfig(
        vocab_size=len(words),
        bos_token_id=words["<|startoftext|>"],
        eos_token_id=words["<|endoftext|>"],
        projection_dim=WIDTH,
        max_position_embeddings=length,
        **_tower(),
    )


def vision_config() -> CLIPVisionConfig:
    """An image encoder of 56x56 pixels."""
    return CLIPVisionConfig(image_size=56, patch_size=14, projection_dim=WIDTH, **_tower())


def _vocabulary() -> dict[str, int]:
    """Printable characters one by one, inside a word and at its end: enough for any English prompt."""
    characters = [chr(code) for code in range(33, 127)]
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    return {word: index for index, word in enumerate(words)}


def tokenizer(length: int = 77) -> CLIPTokenizer:
    """Reads single characters, up to `length` of them."""
    return CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=length)

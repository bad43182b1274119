"""Small files of random weights, named as those that training starts from: a backbone, motion modules, IP-Adapter."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModelWithProjection
from xdyna_model import tiny
from xdyna_train.starts import StartFiles

CHANNELS = (32, 64)
WIDTH = tiny.WIDTH


def backbone(**other: Any) -> UNet2DConditionModel:
    settings = {
        "block_out_channels": CHANNELS,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "norm_num_groups": 32,
        "attention_head_dim": 4,
        "cross_attention_dim": WIDTH,
    }
    return UNet2DConditionModel(**settings | other)


def animatediff_name(name: str) -> str:
    """A name of diffusers' MotionAdapter as AnimateDiff's files have it."""
    name = name.replace("motion_modules.0.", "motion_modules.0.temporal_transformer.")
    name = name.replace("motion_modules.1.", "motion_modules.1.temporal_transformer.")
    for ours, theirs in {
        "attn1": "attention_blocks.0",
        "attn2": "attention_blocks.1",
        "norm1": "norms.0",
        "norm2": "norms.1",
        "norm3": "ff_norm",
        "pos_embed": "attention_blocks.0.pos_encoder",
    }.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def resampler() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"latents": (1, 16, 24), "layers.0.0.to_kv.weight": (96, 24)}
    shapes |= {"layers.0.0.to_q.weight": (48, 24), "layers.0.0.to_out.weight": (24, 48)}
    shapes |= {"layers.0.1.1.weight": (96, 24), "layers.0.1.3.weight": (24, 96)}
    for name, (rows, columns) in {"proj_in": (24, WIDTH), "proj_out": (WIDTH, 24)}.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name, size in {"norm_out": WIDTH, "layers.0.0.norm1": 24, "layers.0.0.norm2": 24, "layers.0.1.0": 24}.items():
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}


def write_files(folder: Path) -> StartFiles:
    """All that training from Stable Diffusion 1.5 starts from, small and random."""
    torch.manual_seed(0)
    unet = backbone()
    unet.save_pretrained(folder / "sd15" / "unet")
    AutoencoderKL(**tiny.VAE).save_pretrained(folder / "sd15" / "vae")
    CLIPTextModel(tiny.text_config(8)).save_pretrained(folder / "sd15" / "text_encoder")
    tiny.tokenizer(8).save_pretrained(folder / "sd15" / "tokenizer")
    CLIPVisionModelWithProjection(tiny.vision_config()).save_pretrained(folder / "vision")
    adapter = MotionAdapter(CHANNELS, motion_layers_per_block=1, use_motion_mid_block=False, motion_max_seq_length=24)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    adapter.save_pretrained(folder / "motion")
    named = {animatediff_name(name): tensor for name, tensor in adapter.state_dict().items()}
    assert not any(re.search(r"\.(attn|norm)\d\.", name) for name in named)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in named.items()}}, folder / "motion.ckpt")
    sides = [unet.get_submodule(n.removesuffix(".processor")).to_k.out_features for n in unet.attn_processors][1::2]
    attention = {f"{2 * i + 1}.to_{p}_ip.weight": torch.randn(n, WIDTH) for i, n in enumerate(sides) for p in "kv"}
    torch.save({"image_proj": resampler(), "ip_adapter": attention}, folder / "ip.bin")
    return StartFiles(None, folder / "sd15", folder / "motion.ckpt", folder / "vision", folder / "ip.bin")


def with_backbone(files: StartFiles, folder: Path, **other: Any) -> StartFiles:
    """The same files, with another backbone in the folder of SD 1.5."""
    assert files.sd15 is not None
    sd15 = shutil.copytree(files.sd15, folder / "sd15", ignore=shutil.ignore_patterns("unet"))
    backbone(**other).save_pretrained(sd15 / "unet")
    return replace(files, sd15=sd15)


def inputs(frames: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "clip": torch.randn(1, 4, frames, 16, 8, generator=generator),
        "text": torch.randn(1, 8, WIDTH, generator=generator),
        "tokens": torch.randn(1, 16, WIDTH, generator=generator),
        "timestep": torch.tensor([300]),
    }

"""Released names to ours, strictly: a missing, unexpected or wrongly shaped tensor is an error that names it.

The released loader prints how many keys were missing and goes on, which has given its users silent garbage.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from torch import Tensor, nn

from xdyna_model.errors import InputError
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.unet import XDynaUNet

State = Mapping[str, Tensor]

# Our name -> released name, applied in order to names of spatial parts and of motion modules.
_SPATIAL = [
    (r"attn1\.processor\.to_q_ref\.", "attn1.to_q_ff."),
    (r"attn1\.processor\.to_out_ref\.", "attn1.to_out_ff."),
    (r"attn2\.processor\.to_([kv])_ip\.0\.", r"attn2.to_\1_ip."),
]
_MOTION = [
    (r"(motion_modules\.\d+)\.", r"\1.temporal_transformer."),
    (r"\.attn1\.", ".attention_blocks.0."),
    (r"\.attn2\.", ".attention_blocks.1."),
    (r"\.norm1\.", ".norms.0."),
    (r"\.norm2\.", ".norms.1."),
    (r"\.norm3\.", ".ff_norm."),
]
# AnimateDiff's name -> ours.
_MOTION_BACK = [
    (r"\.temporal_transformer\.", "."),
    (r"\.attention_blocks\.\d\.pos_encoder\.pe$", ".pos_embed.pe"),
    (r"\.attention_blocks\.0\.", ".attn1."),
    (r"\.attention_blocks\.1\.", ".attn2."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
    (r"\.ff_norm\.", ".norm3."),
]
_RESAMPLER = [
    (r"layers\.(\d+)\.ln0\.", r"layers.\1.0.norm1."),
    (r"layers\.(\d+)\.ln1\.", r"layers.\1.0.norm2."),
    (r"layers\.(\d+)\.attn\.to_q\.", r"layers.\1.0.to_q."),
    (r"layers\.(\d+)\.attn\.to_out\.0\.", r"layers.\1.0.to_out."),
    (r"layers\.(\d+)\.ff\.0\.", r"layers.\1.1.0."),
    (r"layers\.(\d+)\.ff\.1\.net\.0\.proj\.", r"layers.\1.1.1."),
    (r"layers\.(\d+)\.ff\.1\.net\.2\.", r"layers.\1.1.3."),
]


def convert_unet(released: State) -> dict[str, Tensor]:
    """Released denoiser weights to the state dict of the `XDynaUNet` of the same sizes (`unet_config`).

    Raises:
        InputError: names the tensors that are missing, unexpected or of the wrong shape.
    """
    released = _plain(released)
    config = unet_config(released)
    expected = _expected("denoiser", XDynaUNet, config)
    names, positions = {}, []
    for name in expected:
        if name.endswith("pos_embed.pe"):
            block = _rename(name.removesuffix("pos_embed.pe"), _MOTION)
            positions += [f"{block}attention_blocks.{i}.pos_encoder.pe" for i in (0, 1)]
        else:
            names[name] = _rename(name, _MOTION if ".motion_modules." in name else _SPATIAL)
    shapes = {names[name]: tensor.shape for name, tensor in expected.items() if name in names}
    length, parts = config["motion_max_seq_length"], "attention_blocks"
    for name in positions:
        channels = shapes[name.partition(f".{parts}.")[0] + ".ff_norm.weight"][0]
        shapes[name] = torch.Size([1, length, channels])
    check("denoiser", released, shapes)

    state = {name: released[names[name]] for name in names}
    for name, tensor in expected.items():
        if name not in names:  # a sinusoid: built again, not loaded
            state |= {name: SinusoidalPositionalEmbedding(tensor.shape[-1], max_seq_length=length).get_buffer("pe")}
    return state


def convert_controlnet(released: State) -> dict[str, Tensor]:
    """Released ControlNet weights (pose or face) to the state dict of a diffusers `ControlNetModel`.

    Raises:
        InputError: names the tensors that are missing, unexpected or of the wrong shape.
    """
    released = _plain(released)
    expected = _expected("ControlNet", ControlNetModel, controlnet_config(released))
    check("ControlNet", released, {name: tensor.shape for name, tensor in expected.items()})
    return dict(released)


def convert_motion_modules(released: State) -> dict[str, Tensor]:
    """AnimateDiff's motion modules (`mm_sd_v15.ckpt` and its like) by the names that `XDynaUNet` has for them.

    What is in them is checked where they are put into a denoiser.

    Raises:
        InputError: two tensors that the denoiser has one for, as the positions of both attentions of a block, differ.
    """
    state, sources = {}, {}
    for source, tensor in _plain(released).items():
        name = _rename(source, _MOTION_BACK)
        if name in state and (state[name].shape != tensor.shape or (state[name] != tensor).any()):
            raise InputError(f"{source} differs from {sources[name]}, and a denoiser has one tensor for both")
        state[name], sources[name] = tensor, source
    return state


def convert_image_projection(released: State, heads: int = 12) -> dict[str, Tensor]:
    """Weights of IP-Adapter Plus' resampler (`image_proj` of its file) to the state dict of an `ImageProjection`.

    Raises:
        InputError: names the tensors that are missing, unexpected or of the wrong shape.
    """
    released = _plain(released)
    expected = _expected("image projection", ImageProjection, image_projection_config(released, heads))
    shapes, state = {}, {}
    for name, tensor in expected.items():
        if ".attn.to_k." in name or ".attn.to_v." in name:  # one tensor there: [keys; values]
            source = re.sub(r"attn\.to_[kv]\.", "0.to_kv.", name)
            shapes[source] = torch.Size([2 * tensor.shape[0], tensor.shape[1]])
        else:
            shapes[_rename(name, _RESAMPLER)] = tensor.shape
    check("image projection", released, shapes)
    for name in expected:
        if ".attn.to_k." in name or ".attn.to_v." in name:
            keys, values = released[re.sub(r"attn\.to_[kv]\.", "0.to_kv.", name)].chunk(2)
            state[name] = keys if ".to_k." in name else values
        else:
            state[name] = released[_rename(name, _RESAMPLER)]
    return state


def unet_config(released: State) -> dict:
    """The sizes of a released denoiser, read off its tensors, as arguments of `XDynaUNet`."""
    released = _plain(released)
    cross = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    pe = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
    _require("denoiser", released, {"conv_in.weight": 4, "conv_out.weight": 4, cross: 2, pe: 3})
    return _backbone_config("denoiser", released) | {
        "out_channels": released["conv_out.weight"].shape[0],
        "cross_attention_dim": released[cross].shape[1],
        "motion_max_seq_length": released[pe].shape[1],
    }


def controlnet_config(released: State) -> dict:
    """The sizes of a released ControlNet, read off its tensors, as arguments of `ControlNetModel`."""
    released = _plain(released)
    cross = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    first = "controlnet_cond_embedding.conv_in.weight"
    _require("ControlNet", released, {"conv_in.weight": 4, cross: 2, first: 4})
    embedding = [released[first].shape[0]]
    while (name := f"controlnet_cond_embedding.blocks.{2 * len(embedding) - 1}.weight") in released:
        _require("ControlNet", released, {name: 4})
        embedding.append(released[name].shape[0])
    return _backbone_config("ControlNet", released) | {
        "cross_attention_dim": released[cross].shape[1],
        "conditioning_channels": released[first].shape[1],
        "conditioning_embedding_out_channels": tuple(embedding),
    }


def image_projection_config(released: State, heads: int = 12) -> dict:
    """The sizes of a released resampler, read off its tensors, as arguments of `ImageProjection`."""
    released = _plain(released)
    matrices = ["proj_in.weight", "proj_out.weight", "layers.0.0.to_q.weight", "layers.0.1.1.weight"]
    _require("image projection", released, {"latents": 3} | dict.fromkeys(matrices, 2))
    hidden = released["proj_in.weight"].shape[0]
    return {
        "embed_dims": released["proj_in.weight"].shape[1],
        "output_dims": released["proj_out.weight"].shape[0],
        "hidden_dims": hidden,
        "depth": len({name.split(".")[1] for name in released if name.startswith("layers.")}),
        "dim_head": released["layers.0.0.to_q.weight"].shape[0] // heads,
        "heads": heads,
        "num_queries": released["latents"].shape[1],
        "ffn_ratio": released["layers.0.1.1.weight"].shape[0] / hidden,
    }


def _backbone_config(what: str, released: State) -> dict:
    levels = [f"down_blocks.{level}.resnets.0.conv1.weight" for level in range(4)]
    _require(what, released, dict.fromkeys(levels, 4))
    channels, layers = [released[name].shape[0] for name in levels], 1
    while f"down_blocks.0.resnets.{layers}.conv1.weight" in released:
        layers += 1
    return {
        "in_channels": released["conv_in.weight"].shape[1],
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "norm_num_groups": math.gcd(32, *channels),  # leaves no trace in the tensors; 32 in the released model
    }


def _plain(released: State) -> State:
    """Unwraps `state_dict` and removes every `module.` that distributed training left in the names."""
    released = released.get("state_dict", released)  # pyright: ignore[reportAssignmentType]
    return {name.replace("module.", ""): tensor for name, tensor in released.items()}


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _require(what: str, released: State, dimensions: Mapping[str, int]) -> None:
    """Raises InputError where a tensor that sizes are read off is missing, empty or of other dimensions."""
    if missing := [name for name in dimensions if name not in released]:
        raise InputError(f"not the weights of a {what}: missing {', '.join(missing)}")
    for name, number in dimensions.items():
        if released[name].ndim != number or not released[name].numel():
            shape = list(released[name].shape)
            raise InputError(
                f"not the weights of a {what}: {name} is {shape}, expected {number} dimensions, none empty"
            )


def _expected(what: str, kind: type[nn.Module], config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a model of these sizes, without memory. Raises InputError where no model has them."""
    try:
        with torch.device("meta"):
            return kind(**config).state_dict()
    except (ValueError, ArithmeticError, RuntimeError) as error:
        sizes = ", ".join(f"{name} {size}" for name, size in config.items())
        raise InputError(f"no {what} has the sizes of these weights, {sizes} ({error})") from error


def misfits(released: State, shapes: Mapping[str, torch.Size]) -> dict[str, str]:
    """What is wrong with every tensor that is missing, unexpected or of another shape than in `shapes`, by its name."""
    wrong = {name: f"missing {name}" for name in shapes if name not in released}
    wrong |= {name: f"unexpected {name}" for name in released if name not in shapes}
    return wrong | {
        name: f"{name} is {list(released[name].shape)}, expected {list(shape)}"
        for name, shape in shapes.items()
        if name in released and released[name].shape != shape
    }


def check(what: str, released: State, shapes: Mapping[str, torch.Size]) -> None:
    """Raises InputError that names all `misfits`."""
    if wrong := misfits(released, shapes):
        raise InputError(f"the weights do not fit the {what}: {'; '.join(wrong.values())}")

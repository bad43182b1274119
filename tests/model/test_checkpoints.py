"""Released names to ours: all of them, and no silence about one that is wrong."""

import re

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection
from xdyna_model.checkpoints import (
    controlnet_config,
    convert_controlnet,
    convert_image_projection,
    convert_motion_modules,
    convert_unet,
    image_projection_config,
    unet_config,
)
from xdyna_model.component_fit import check_fit
from xdyna_model.errors import InputError
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.unet import XDynaUNet


@pytest.fixture(scope="module")
def full_size(oracle_json):
    shapes = oracle_json("full_size_shapes")
    return {kind: {n: torch.empty(s, device="meta") for n, s in names.items()} for kind, names in shapes.items()}


def meta(kind, **config):
    with torch.device("meta"):
        return kind(**config)


def test_full_size_denoiser(full_size):
    released = full_size["unet"]
    assert len(released) == 1326
    unet = meta(XDynaUNet)
    unet.load_state_dict(convert_unet(released), strict=True, assign=True)
    assert sum(p.numel() for p in unet.parameters()) == 1_320_621_124  # as counted in the released model


@pytest.mark.parametrize(("kind", "channels"), [("controlnet_pose", 3), ("controlnet_face", 6)])
def test_full_size_controlnets(full_size, kind, channels):
    assert len(full_size[kind]) == 340
    net = meta(ControlNetModel, cross_attention_dim=768, conditioning_channels=channels)
    net.load_state_dict(convert_controlnet(full_size[kind]), strict=True, assign=True)


def test_full_size_image_projection(full_size):
    module = meta(ImageProjection)
    module.load_state_dict(convert_image_projection(full_size["resampler"]), strict=True, assign=True)
    assert sum(p.numel() for p in module.parameters()) == 29_918_208


def test_full_size_parts_fit_each_other(full_size):
    """As `convert` makes them of the released files, with the encoders of SD 1.5 and of IP-Adapter."""
    check_fit(
        vae=meta(AutoencoderKL),
        text_encoder=meta(CLIPTextModel, config=CLIPTextConfig(hidden_size=768, num_hidden_layers=1)),
        unet=meta(XDynaUNet, **unet_config(full_size["unet"])),
        controlnet=meta(ControlNetModel, **controlnet_config(full_size["controlnet_pose"])),
        controlnet_face=meta(ControlNetModel, **controlnet_config(full_size["controlnet_face"])),
        image_encoder=meta(
            CLIPVisionModelWithProjection,
            config=CLIPVisionConfig(hidden_size=1280, num_attention_heads=16, num_hidden_layers=1),
        ),
        image_projection=meta(ImageProjection, **image_projection_config(full_size["resampler"])),
    )


def test_every_tensor_arrives_unchanged(oracle):
    """Bijection: each released tensor is found once, and sinusoids are built anew."""
    released = oracle("unet").weights
    marked = {name: torch.full_like(tensor, i) for i, (name, tensor) in enumerate(released.items())}
    converted = convert_unet(marked)
    values = [tensor.flatten()[0].item() for name, tensor in converted.items() if not name.endswith(".pe")]
    expected = [i for i, name in enumerate(released) if not name.endswith(".pe")]
    assert sorted(values) == expected
    for name, tensor in converted.items():
        if name.endswith(".pe"):
            assert tensor.abs().max() <= 1


def test_wrappings_are_taken_off(oracle):
    released = oracle("unet").weights
    plain = convert_unet(released)
    wrapped = convert_unet({"state_dict": {f"module.{name}": tensor for name, tensor in released.items()}})
    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


CASES = [
    ("unet", convert_unet, "up_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q_ff.weight"),
    ("unet", convert_unet, "down_blocks.1.motion_modules.0.temporal_transformer.proj_out.bias"),
    ("unet", convert_unet, "conv_in.weight"),
    ("controlnet_pose", convert_controlnet, "controlnet_mid_block.bias"),
    ("controlnet_face", convert_controlnet, "controlnet_cond_embedding.conv_in.weight"),
]


@pytest.mark.parametrize(("kind", "convert", "name"), CASES)
def test_missing_tensors_are_named(oracle, kind, convert, name):
    released = dict(oracle(kind).weights)
    del released[name]
    with pytest.raises(InputError, match=f"missing {name}"):
        convert(released)


@pytest.mark.parametrize(("kind", "convert", "name"), CASES)
def test_misshapen_tensors_are_named(oracle, kind, convert, name):
    released = dict(oracle(kind).weights)
    released[name] = released[name][:-1] if name != "conv_in.weight" else released[name][:, :, :1]
    with pytest.raises(InputError, match=r"is \[.*\], expected \["):
        convert(released)


@pytest.mark.parametrize("convert", [convert_unet, convert_controlnet])
def test_unexpected_tensors_are_named(oracle, convert):
    released = dict(oracle("unet" if convert is convert_unet else "controlnet_pose").weights)
    released["down_blocks.0.surprise.weight"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"unexpected down_blocks.0.surprise.weight"):
        convert(released)


def test_image_projection_mistakes_are_named(oracle):
    released = dict(oracle("resampler").weights)
    del released["layers.1.0.to_kv.weight"]
    with pytest.raises(InputError, match=r"missing layers.1.0.to_kv.weight"):
        convert_image_projection(released, heads=4)


def test_one_net_is_not_taken_for_the_other(oracle):
    assert controlnet_config(oracle("controlnet_face").weights)["conditioning_channels"] == 6
    with pytest.raises(InputError, match="not the weights of a denoiser"):
        convert_unet(oracle("controlnet_pose").weights)
    with pytest.raises(InputError, match="not the weights of a ControlNet"):
        convert_controlnet(oracle("unet").weights)


CROSS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
PE = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"
CONV = "down_blocks.2.resnets.0.conv1.weight"


@pytest.mark.parametrize("shape", [(), (3,), (64, 32, 3, 3, 1)])
@pytest.mark.parametrize(
    ("kind", "convert", "name"),
    [
        *[("unet", convert_unet, name) for name in ("conv_in.weight", "conv_out.weight", CROSS, PE, CONV)],
        *[("controlnet_pose", convert_controlnet, name) for name in ("conv_in.weight", CROSS, CONV)],
        ("controlnet_pose", convert_controlnet, "controlnet_cond_embedding.conv_in.weight"),
        ("controlnet_pose", convert_controlnet, "controlnet_cond_embedding.blocks.1.weight"),
        ("resampler", convert_image_projection, "latents"),
        ("resampler", convert_image_projection, "proj_in.weight"),
        ("resampler", convert_image_projection, "layers.0.1.1.weight"),
    ],
)
def test_sizes_are_read_off_tensors_of_the_right_dimensions(oracle, kind, convert, name, shape):
    with pytest.raises(
        InputError, match=rf"^not the weights of a .*: {name} is {re.escape(str(list(shape)))}, expected"
    ):
        convert({**oracle(kind).weights, name: torch.zeros(shape)})


def test_sizes_are_not_read_off_empty_tensors(oracle):
    with pytest.raises(InputError, match=r"proj_in\.weight is \[0, 80\], expected 2 dimensions, none empty"):
        convert_image_projection({**oracle("resampler").weights, "proj_in.weight": torch.zeros(0, 80)})


@pytest.mark.parametrize(("kind", "convert"), [("unet", convert_unet), ("controlnet_face", convert_controlnet)])
@pytest.mark.parametrize("level", [0, 1, 3])
def test_a_level_that_is_missing_is_named(oracle, kind, convert, level):
    kept = {name: t for name, t in oracle(kind).weights.items() if not name.startswith(f"down_blocks.{level}.resnets")}
    with pytest.raises(InputError, match=rf"missing down_blocks\.{level}\.resnets\.0\.conv1\.weight"):
        convert(kept)


def test_sizes_that_no_denoiser_has_are_refused(oracle):
    odd = {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(31, 32, 3, 3)}
    with pytest.raises(
        InputError, match=r"no denoiser has .*block_out_channels.*\(31, .*need channels divisible by 32"
    ):
        convert_unet({**oracle("unet").weights, **odd})


BLOCK = "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0"


@pytest.mark.parametrize("other", [torch.zeros(1, 24, 32), torch.zeros(1, 32, 64)])
def test_positions_that_differ_in_one_block_are_refused(other):
    """The denoiser has one table for both attentions of a block, AnimateDiff's file has two."""
    positions = torch.ones(1, 24, 32)
    names = [f"{BLOCK}.attention_blocks.{index}.pos_encoder.pe" for index in (0, 1)]
    [(name, kept)] = convert_motion_modules(dict.fromkeys(names, positions)).items()
    assert (name, kept is positions) == ("mid_block.motion_modules.0.transformer_blocks.0.pos_embed.pe", True)
    with pytest.raises(InputError, match=f"^{names[1]} differs from {names[0]}"):
        convert_motion_modules({names[0]: positions, names[1]: other})

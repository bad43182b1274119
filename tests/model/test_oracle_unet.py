"""The denoiser against the released code, and every likely mistake against how far it was seen to move the output."""

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from einops import rearrange
from xdyna_model.checkpoints import convert_unet, unet_config
from xdyna_model.clip_layout import ClipLayout
from xdyna_model.dynamics_adapter import DynamicsAdapter
from xdyna_model.image_tokens import ImageTokenAttention
from xdyna_model.motion import ClipGroupNorm, MotionModule
from xdyna_model.unet import XDynaUNet

TOLERANCE = 2e-5


@pytest.fixture
def unet(oracle):
    weights = oracle("unet").weights
    unet = XDynaUNet(**unet_config(weights) | {"norm_num_groups": 8})
    unet.load_state_dict(convert_unet(weights), strict=True)
    return unet.eval().requires_grad_(False)


def predict(unet, data, timestep=501, case="", **residuals):
    tokens = data[f"in.{case}encoder_hidden_states"]
    return unet(data[f"in.{case}sample"], timestep, tokens[:, :77], tokens[:, 77:], **residuals).sample


def error(out, expected):
    return (out - expected).abs().max().item()


def test_plain(oracle, unet):
    data = oracle("unet")
    assert error(predict(unet, data), data["out.plain"]) < TOLERANCE


def test_controlnet_residuals(oracle, unet):
    data = oracle("unet")

    def fold(clip):
        return rearrange(clip, "b c f h w -> (b f) c h w")

    out = predict(
        unet,
        data,
        down_block_additional_residuals=tuple(fold(data[f"in.down_residual.{i}"]) for i in range(8)),
        mid_block_additional_residual=fold(data["in.mid_residual"]),
    )
    assert error(out, data["out.with_residuals"]) < TOLERANCE


def test_timestep_per_sample(oracle, unet):
    data = oracle("unet")
    timesteps = torch.tensor(data.facts["per_sample_timestep"])
    assert error(predict(unet, data, timesteps), data["out.per_sample_timestep"]) < TOLERANCE


def test_sides_not_divisible_by_8(oracle, unet):
    data = oracle("unet")
    assert error(predict(unet, data, 961, case="odd."), data["out.odd"]) < TOLERANCE


def test_too_many_frames_are_refused(unet):
    with pytest.raises(ValueError, match="1 <= F <= 1 \\+ 24"):
        unet(torch.zeros(1, 4, 26, 8, 8), 1, torch.zeros(1, 77, 32), torch.zeros(1, 16, 32))


def test_layout_survives_a_copy(oracle, unet):
    """The frame count is shared by reference: a deep copy must share its own, not the original's."""
    data = oracle("unet")
    twin = copy.deepcopy(unet)
    unet.layout.num_frames = 99
    assert error(predict(twin, data), data["out.plain"]) < TOLERANCE


def parts(unet, kind):
    return [module for module in unet.modules() if isinstance(module, kind)]


def norms_per_frame(unet):
    for norm in parts(unet, ClipGroupNorm):
        norm.layout = ClipLayout(1)


def output_norm_per_frame(unet):
    unet.conv_norm_out.layout = ClipLayout(1)


def adapter_off(unet):
    for adapter in parts(unet, DynamicsAdapter):
        adapter.to_out_ref.weight.zero_()
        adapter.to_out_ref.bias.zero_()


def image_tokens_off(unet):
    for processor in parts(unet, ImageTokenAttention):
        processor.to_v_ip[0].weight.zero_()


def motion_off(unet):
    for module in parts(unet, MotionModule):
        module.proj_out.weight.zero_()
        module.proj_out.bias.zero_()


def no_positions(unet):
    for module in parts(unet, MotionModule):
        module.transformer_blocks[0].pos_embed.pe.zero_()


def motion_moves_reference(unet):
    for module in parts(unet, MotionModule):

        def forward(hidden_states, num_frames, stock=module.forward):
            clip = rearrange(hidden_states, "(b f) c h w -> b f c h w", f=num_frames)
            doubled = rearrange(torch.cat([clip[:, :1], clip], 1), "b f c h w -> (b f) c h w")
            out = rearrange(stock(doubled, num_frames=num_frames + 1), "(b f) c h w -> b f c h w", f=num_frames + 1)
            return rearrange(out[:, 1:], "b f c h w -> (b f) c h w")

        module.forward = forward


def reference_at_timestep_zero(unet):
    zero = unet.time_embedding(unet.time_proj(torch.zeros(1)))

    def exchange(module, args, kwargs):
        states, temb = args or (kwargs["input_tensor"], kwargs["temb"])
        temb = rearrange(temb, "(b f) c -> b f c", f=unet.layout.num_frames).clone()
        temb[:, 0] = zero
        return (states, rearrange(temb, "b f c -> (b f) c")), {}

    for resnet in parts(unet, ResnetBlock2D):
        resnet.register_forward_pre_hook(exchange, with_kwargs=True)


def reference_without_residual(unet):
    for adapter in parts(unet, DynamicsAdapter):

        def forward(attn, hidden_states, *args, stock=adapter.forward, adapter=adapter, **kwargs):
            out = rearrange(stock(attn, hidden_states), "(b f) n c -> b f n c", f=unet.layout.num_frames)
            weight, bias = adapter.to_out_ref.weight.clone(), adapter.to_out_ref.bias.clone()
            adapter.to_out_ref.weight.zero_()
            adapter.to_out_ref.bias.zero_()
            plain = rearrange(stock(attn, hidden_states), "(b f) n c -> b f n c", f=unet.layout.num_frames)
            adapter.to_out_ref.weight.copy_(weight)
            adapter.to_out_ref.bias.copy_(bias)
            return rearrange(torch.cat([plain[:, :1], out[:, 1:]], 1), "b f n c -> (b f) n c")

        adapter.forward = forward


def tanh_gelu(unet):
    for activation in parts(unet, GEGLU):
        activation.gelu = lambda gate: F.gelu(gate, approximate="tanh")


MISTAKES = {
    "all resnet + out GroupNorms per frame": norms_per_frame,
    "only conv_norm_out per frame": output_norm_per_frame,
    "to_out_ff zero (adapter off)": adapter_off,
    "IP branch off (to_v_ip=0)": image_tokens_off,
    "motion proj_out zero": motion_off,
    "motion modules include frame 0": motion_moves_reference,
    "no temporal position encoding": no_positions,
    "reference frame gets timestep 0": reference_at_timestep_zero,
    "frame 0 skips its own reference residual": reference_without_residual,
    "GEGLU tanh approx": tanh_gelu,
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_moves_the_output_as_recorded(oracle, oracle_json, unet, mistake):
    data, recorded = oracle("unet"), oracle_json("unet_sensitivity")["variants"][mistake]["all"]
    MISTAKES[mistake](unet)
    moved = error(predict(unet, data), data["out.plain"])
    assert moved > 10 * TOLERANCE
    assert moved == pytest.approx(recorded, rel=0.02)

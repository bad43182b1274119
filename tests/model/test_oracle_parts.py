"""Every part of the denoiser against the released code, alone."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from xdyna_model.checkpoints import convert_image_projection, image_projection_config
from xdyna_model.clip_layout import ClipLayout
from xdyna_model.dynamics_adapter import DynamicsAdapter
from xdyna_model.image_tokens import ImageProjection, ImageTokenAttention
from xdyna_model.motion import ClipGroupNorm, MotionModule

TOLERANCE = {"rtol": 0, "atol": 2e-5}


def fold(clip):
    return rearrange(clip, "b c f h w -> (b f) c h w")


def unfold(frames, like):
    return rearrange(frames, "(b f) c h w -> b c f h w", f=like.shape[2])


def load(module, weights, **renamed):
    """Loads released weights, with fragments of their names replaced."""
    state = {}
    for name, tensor in weights.items():
        for ours, theirs in renamed.items():
            name = name.replace(theirs, ours.replace("__", "."))
        state[name] = tensor
    module.load_state_dict(state, strict=True)
    return module.eval().requires_grad_(False)


def adapted(attention, layout):
    kind = DynamicsAdapter if attention.cross_attention_dim == attention.query_dim else ImageTokenAttention
    attention.set_processor(kind(attention, layout))
    return attention


ADAPTER_NAMES = {"processor__to_q_ref": "to_q_ff", "processor__to_out_ref": "to_out_ff"}
TOKEN_NAMES = {"processor__to_k_ip__0": "to_k_ip", "processor__to_v_ip__0": "to_v_ip"}


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_dynamics_adapter(oracle, backend):
    data = oracle("mixed_attention")
    attention = adapted(Attention(query_dim=64, heads=8, dim_head=8), ClipLayout(5))
    load(attention, data.weights, **ADAPTER_NAMES)
    adapter = attention.processor
    adapter.backend = backend
    torch.testing.assert_close(attention(data["in.hidden_states"]), data["out"], **TOLERANCE)
    weight, bias = adapter.to_out_ref.weight.clone(), adapter.to_out_ref.bias.clone()
    adapter.to_out_ref.weight.zero_()
    adapter.to_out_ref.bias.zero_()
    torch.testing.assert_close(attention(data["in.hidden_states"]), data["out.self_only"], **TOLERANCE)
    adapter.to_out_ref.weight.copy_(weight)
    adapter.to_out_ref.bias.copy_(bias)
    attention.to_out[0].weight.zero_()
    attention.to_out[0].bias.zero_()
    torch.testing.assert_close(attention(data["in.hidden_states"]), data["out.reference_only"], **TOLERANCE)


def test_image_token_attention(oracle):
    data = oracle("ip_attention")
    attention = adapted(Attention(query_dim=64, cross_attention_dim=32, heads=8, dim_head=8), ClipLayout(1))
    load(attention, data.weights, **TOKEN_NAMES)
    tokens = data["in.encoder_hidden_states"]
    out = attention(data["in.hidden_states"], encoder_hidden_states=(tokens[:, :77], tokens[:, 77:]))
    torch.testing.assert_close(out, data["out"], **TOLERANCE)


@pytest.fixture(scope="module")
def motion_module(oracle):
    stock = AnimateDiffTransformer3D(
        num_attention_heads=8,
        attention_head_dim=8,
        in_channels=64,
        norm_num_groups=8,  # whatever the backbone has: the module takes 32
        positional_embeddings="sinusoidal",
        num_positional_embeddings=24,
    )
    weights = dict(oracle("temporal_module").weights)
    positions = [weights.pop(name) for name in list(weights) if name.endswith("pos_encoder.pe")]
    weights["transformer_blocks.0.pos_embed.pe"] = positions[0]
    names = {"": "temporal_transformer.", "attn1": "attention_blocks.0", "attn2": "attention_blocks.1"}
    return load(MotionModule(stock), weights, **names, norm1="norms.0", norm2="norms.1", norm3="ff_norm")


@pytest.mark.parametrize(("given", "expected"), [("in.hidden_states", "out"), ("in.hidden_states_24", "out.24")])
def test_motion_module(oracle, motion_module, given, expected):
    data = oracle("temporal_module")
    clip = data[given]
    out = unfold(motion_module(fold(clip), num_frames=clip.shape[2]), clip)
    torch.testing.assert_close(out, data[expected], **TOLERANCE)
    assert torch.equal(out[:, :, 0], clip[:, :, 0])  # the reference passes bit for bit


@pytest.fixture(scope="module")
def transformer(oracle):
    block = Transformer2DModel(8, 8, in_channels=64, cross_attention_dim=32, norm_num_groups=32)
    layout = ClipLayout()
    for module in list(block.modules()):
        if isinstance(module, Attention):
            adapted(module, layout)
    return load(block, oracle("transformer_block").weights, **ADAPTER_NAMES, **TOKEN_NAMES), layout


def test_transformer_block(oracle, transformer):
    data = oracle("transformer_block")
    run_transformer(transformer, data["in.hidden_states"], data["in.encoder_hidden_states"], data["out"])


def run_transformer(transformer, clip, tokens, expected):
    block, layout = transformer
    layout.num_frames = clip.shape[2]
    out = block(fold(clip), (tokens[:, :77], tokens[:, 77:]), return_dict=False)[0]
    torch.testing.assert_close(unfold(out, clip), expected, **TOLERANCE)


@pytest.fixture(scope="module")
def resnet(oracle):
    block = ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=128, eps=1e-5, groups=8)
    layout = ClipLayout()
    block.norm1, block.norm2 = ClipGroupNorm(block.norm1, layout), ClipGroupNorm(block.norm2, layout)
    weights = {k: v for k, v in oracle("resnet_block").weights.items() if not k.startswith(("down.", "up."))}
    return load(block, weights), layout


def run_resnet(resnet, clip, temb, expected):
    block, layout = resnet
    layout.num_frames = clip.shape[2]
    out = block(fold(clip), temb.repeat_interleave(clip.shape[2], dim=0))
    torch.testing.assert_close(unfold(out, clip), expected, **TOLERANCE)


def test_resnet_block(oracle, resnet):
    data = oracle("resnet_block")
    run_resnet(resnet, data["in.hidden_states"], data["in.temb"], data["out"])


def test_samplers(oracle):
    data = oracle("resnet_block")

    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in data.weights.items() if k.startswith(prefix)}

    down = load(Downsample2D(64, use_conv=True, padding=1, name="op"), part("down."))
    up = load(Upsample2D(64, use_conv=True), part("up."))
    torch.testing.assert_close(unfold(down(fold(data["out"])), data["out"]), data["out.down"], **TOLERANCE)
    small = fold(data["out.down"])
    torch.testing.assert_close(unfold(up(small), data["out"]), data["out.up_scale2"], **TOLERANCE)
    resized = up(small, output_size=(7, 4))
    torch.testing.assert_close(unfold(resized, data["out"]), data["out.up_size_5_7_4"], **TOLERANCE)


def test_norm_epsilons(oracle, transformer, motion_module, resnet):
    """Inputs of tiny variance, where a wrong eps shows as 0.4 to 2.4 and nowhere else."""
    data = oracle("eps_probe")
    run_transformer(
        transformer,
        data["transformer_block.in.hidden_states"],
        data["transformer_block.in.encoder_hidden_states"],
        data["transformer_block.out"],
    )
    run_resnet(resnet, data["resnet_block.in.hidden_states"], data["resnet_block.in.temb"], data["resnet_block.out"])

    clip = data["temporal_module.in.hidden_states"]
    out = unfold(motion_module(fold(clip), num_frames=clip.shape[2]), clip)
    torch.testing.assert_close(out, data["temporal_module.out"], **TOLERANCE)

    frames = rearrange(data["temporal_block.in.hidden_states"], "f n c -> n f c")
    out = rearrange(motion_module.transformer_blocks[0](frames), "n f c -> f n c")
    torch.testing.assert_close(out, data["temporal_block.out"], **TOLERANCE)

    block, layout = transformer
    layout.num_frames = 3  # the recording's three rows are one clip, its tokens repeated per frame
    tokens = data["basic_block.in.encoder_hidden_states"]
    out = block.transformer_blocks[0](
        data["basic_block.in.hidden_states"], encoder_hidden_states=(tokens[:1, :77], tokens[:1, 77:])
    )
    torch.testing.assert_close(out, data["basic_block.out"], **TOLERANCE)


def test_image_projection(oracle):
    data = oracle("resampler")
    module = ImageProjection(**image_projection_config(data.weights, heads=4))
    load(module, convert_image_projection(data.weights, heads=4))
    torch.testing.assert_close(module(data["in"]), data["out"], **TOLERANCE)

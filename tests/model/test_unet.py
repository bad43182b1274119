"""The denoiser as a module: compiled, trained, reset."""

import copy
import functools

import pytest
import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import Attention
from torch.utils.checkpoint import checkpoint
from xdyna_model.dynamics_adapter import DynamicsAdapter
from xdyna_model.nano import CPU_SIZE, nano_pipeline
from xdyna_model.positional_unet import DriftingAdapter
from xdyna_model.tiny import BACKBONE, tiny_pipeline
from xdyna_model.unet import RELEASED, XDynaUNet


@pytest.fixture
def unet():
    return tiny_pipeline().unet


def inputs(batch=1, frames=3):
    return torch.randn(batch, 4, frames, 8, 8), torch.tensor(5), torch.randn(batch, 77, 32), torch.randn(batch, 16, 32)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_traces_as_one_graph():
    """No graph break: what looks across frames does not get in the compiler's way."""
    unet = XDynaUNet(
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=32,
    )
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    arguments = inputs()
    with torch.no_grad():
        torch.testing.assert_close(compiled(*arguments).sample, unet(*arguments).sample)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_weight_gets_a_gradient(unet, checkpointing):
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()(*inputs()).sample[:, :, 1:].square().mean().backward()
    without = [name for name, weight in unet.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["tiny", "nano"])
def test_clips_of_two_lengths_before_one_backward(kind, reentrant):
    """Blocks that are computed anew must know the clip that they were computed for, not the one that came last."""
    net = (tiny_pipeline() if kind == "tiny" else nano_pipeline(size=CPU_SIZE)).unet.train()
    channels, tokens = net.config["out_channels"], net.config["cross_attention_dim"]
    for module in net.modules():
        if isinstance(module, DynamicsAdapter):  # it starts with zeros
            torch.nn.init.normal_(module.to_out_ref.weight, std=0.1)
    clips = [torch.randn(1, channels, frames, 8, 8, requires_grad=True) for frames in (4, 2)]
    text, image = torch.randn(1, 7, tokens), torch.randn(1, 16, tokens)

    def gradients():
        net.zero_grad()
        sum(net(clip, torch.tensor(5), text, image).sample.square().sum() for clip in clips).backward()
        return {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None}

    expected = gradients()
    net.enable_gradient_checkpointing(functools.partial(checkpoint, use_reentrant=reentrant))
    for adapter in net.modules():
        if isinstance(adapter, DriftingAdapter):
            adapter.guesses = None  # of the last call, with its graph
    net = copy.deepcopy(net)  # with a layout of its own
    found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4 * float(expected[name].abs().max()))


def test_what_would_replace_the_adapters_is_refused():
    pipeline = tiny_pipeline()
    before = set(pipeline.unet.state_dict())
    with pytest.raises(ValueError, match="xformers cannot be turned on or off"):
        pipeline.disable_xformers_memory_efficient_attention()
    with pytest.raises(ValueError, match="xformers cannot be turned on or off"):
        pipeline.unet.enable_xformers_memory_efficient_attention()
    with pytest.raises(ValueError, match="projections cannot be fused"):
        pipeline.unet.fuse_qkv_projections()
    assert set(pipeline.unet.state_dict()) == before


def test_a_backbones_weights_alone_are_refused():
    """They lack those of the adapters, which the parent would copy by name."""
    backbone = UNet2DConditionModel(**BACKBONE)
    with pytest.raises(ValueError, match="load_weights=False") as caught:
        XDynaUNet.from_unet2d(backbone)
    assert "\n" not in str(caught.value)
    unet = XDynaUNet.from_unet2d(backbone, load_weights=False)
    assert isinstance(unet, XDynaUNet)
    assert unet.config["block_out_channels"] == BACKBONE["block_out_channels"]


def test_adapters_without_memory_are_not_reset_in_silence(tmp_path):
    sizes = {"block_out_channels": (32, 32), "layers_per_block": 1, "cross_attention_dim": 32}
    down, up = ("CrossAttnDownBlockMotion", "DownBlockMotion"), ("UpBlockMotion", "CrossAttnUpBlockMotion")
    backbone = UNetMotionModel(**RELEASED | sizes, down_block_types=down, up_block_types=up)
    backbone.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no memory; load with low_cpu_mem_usage=False"):
        XDynaUNet.from_pretrained(tmp_path).reset_adapters()
    unet = XDynaUNet.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    unet.reset_adapters()
    adapters = [module.processor for module in unet.modules() if isinstance(module, Attention)]
    outputs = [adapter.to_out_ref for adapter in adapters if isinstance(adapter, DynamicsAdapter)]
    assert outputs
    assert not any(weight.any() for output in outputs for weight in output.parameters())


def test_reset_adapters_add_nothing_and_ask_as_the_backbone_does(unet):
    arguments = inputs()
    with torch.no_grad():
        before = unet(*arguments).sample
        unet.reset_adapters()
        after = unet(*arguments).sample
        for module in unet.modules():
            if isinstance(module, DynamicsAdapter):
                module.to_q_ref.weight.normal_()  # of no effect, since the output projection is zero
        assert torch.equal(unet(*arguments).sample, after)
    assert not torch.equal(before, after)
    for name, weight in unet.state_dict().items():
        if name.endswith("to_q_ref.weight"):
            continue
        if ".to_out_ref." in name:
            assert not weight.any()


def test_frames_after_the_reference_can_be_permuted_without_time(unet):
    """With the motion modules silent, nothing but the group norms' pooled statistics looks across frames."""
    for name, weight in unet.named_parameters():
        if "motion_modules" in name and ".proj_out." in name:
            weight.data.zero_()
    sample, *rest = inputs(frames=4)
    order = [0, 3, 1, 2]
    with torch.no_grad():
        out = unet(sample, *rest).sample
        permuted = unet(sample[:, :, order], *rest).sample
    torch.testing.assert_close(permuted, out[:, :, order], rtol=1e-4, atol=1e-4)

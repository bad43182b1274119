"""The denoiser as a module: compiled, trained, reset."""

import pytest
import torch
from xdyna_model.dynamics_adapter import DynamicsAdapter
from xdyna_model.tiny import tiny_pipeline
from xdyna_model.unet import XDynaUNet


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

"""Which backbones a start takes: those that the denoiser computes as they are; the others are refused."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from start_files import WIDTH, inputs, with_backbone, write_files
from xdyna_model.errors import InputError
from xdyna_model.unet import XDynaUNet
from xdyna_train.starts import COMPUTED, StartFiles, starting_pipeline


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StartFiles:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("act_fn", "gelu"),
        ("center_input_sample", True),
        ("flip_sin_to_cos", False),
        ("freq_shift", 1),
        ("time_embedding_type", "fourier"),
        ("time_embedding_act_fn", "silu"),
        ("timestep_post_act", "silu"),
        ("time_cond_proj_dim", 32),
        ("mid_block_type", "UNetMidBlock2D"),
        ("down_block_types", ("CrossAttnDownBlock2D", "AttnDownBlock2D")),
        ("up_block_types", ("AttnUpBlock2D", "CrossAttnUpBlock2D")),
        ("conv_in_kernel", 5),
        ("conv_out_kernel", 1),
        ("only_cross_attention", True),
        ("dual_cross_attention", True),
        ("attention_type", "gated"),
        ("resnet_time_scale_shift", "scale_shift"),
        ("resnet_skip_time_act", True),
        ("resnet_out_scale_factor", 2.0),
        ("class_embed_type", "identity"),
        ("num_class_embeds", 4),
        ("class_embeddings_concat", True),
        ("addition_embed_type", "text"),
        ("encoder_hid_dim_type", "text_proj"),
    ],
)
def test_a_backbone_that_computes_something_else_is_refused(
    files: StartFiles, tmp_path: Path, setting: str, value: object
) -> None:
    """Most of these leave no trace in the tensors, and the denoiser would go on without them."""
    more = {"encoder_hid_dim": WIDTH} if setting == "encoder_hid_dim_type" else {}
    more |= {"addition_embed_type_num_heads": 4} if setting == "addition_embed_type" else {}
    changed = with_backbone(files, tmp_path, **{setting: value}, **more)
    shown = re.escape(repr(list(value) if isinstance(value, tuple) else value))
    with pytest.raises(InputError, match=f"sd15/unet: {setting} is {shown}, ") as caught:
        starting_pipeline("sd15", changed, 0)
    assert "\n" not in str(caught.value)


def test_every_setting_of_a_backbone_is_heeded() -> None:
    """Those that the denoiser does not know are checked, or change nothing that the backbone computes."""
    without_effect = {"attention_head_dim", "dropout", "upcast_attention"}  # the first has another name there
    without_effect |= {"mid_block_only_cross_attention", "cross_attention_norm"}
    without_effect |= {"addition_embed_type_num_heads", "time_embedding_dim"}
    known = inspect.signature(XDynaUNet.__init__).parameters.keys() | COMPUTED.keys() | without_effect
    assert inspect.signature(UNet2DConditionModel.__init__).parameters.keys() <= known


@torch.no_grad()
@pytest.mark.parametrize(
    "other",
    [
        {"act_fn": "swish"},
        {"upcast_attention": True, "mid_block_scale_factor": 2.0, "norm_eps": 1e-3},
        {"use_linear_projection": True, "attention_head_dim": (2, 4)},
        {"mid_block_only_cross_attention": True, "cross_attention_norm": "layer_norm"},
        {"downsample_padding": 0, "dropout": 0.1},
        {"only_cross_attention": [False, False]},
    ],
)
def test_a_backbone_with_other_settings_is_computed_as_it_is(files: StartFiles, tmp_path: Path, other: dict) -> None:
    changed = with_backbone(files, tmp_path, **other)
    assert changed.sd15 is not None
    x, unet = inputs(1), UNet2DConditionModel.from_pretrained(changed.sd15 / "unet")
    wanted = unet(x["clip"][:, :, 0], x["timestep"], x["text"]).sample
    denoiser: Any = starting_pipeline("sd15", changed, 0).unet
    found = denoiser(x["clip"], x["timestep"], x["text"], torch.zeros_like(x["tokens"])).sample
    torch.testing.assert_close(found[:, :, 0], wanted, rtol=1e-4, atol=1e-5)


def test_a_backbone_that_motion_modules_do_not_fit_is_refused(files: StartFiles, tmp_path: Path) -> None:
    changed = with_backbone(files, tmp_path, block_out_channels=(48, 64), norm_num_groups=16)
    with pytest.raises(InputError, match=r"sd15/unet: block_out_channels is \[48, 64\], expected multiples of 32"):
        starting_pipeline("sd15", changed, 0)

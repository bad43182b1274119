"""Starting from Stable Diffusion 1.5: what is copied is the same, what is new adds nothing, what is wrong is named."""

import inspect
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, MotionAdapter, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModelWithProjection
from xdyna_model import tiny
from xdyna_model.controlnets import control_residuals
from xdyna_model.errors import InputError
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.unet import XDynaUNet
from xdyna_train.encoding import Encoders
from xdyna_train.starts import COMPUTED, StartFiles, starting_pipeline

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


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StartFiles:
    folder = tmp_path_factory.mktemp("files")
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


@pytest.fixture(scope="module")
def pipeline(files: StartFiles) -> XDynaPipeline:
    return starting_pipeline("sd15", files, 0)


def inputs(frames: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "clip": torch.randn(1, 4, frames, 16, 8, generator=generator),
        "text": torch.randn(1, 8, WIDTH, generator=generator),
        "tokens": torch.randn(1, 16, WIDTH, generator=generator),
        "timestep": torch.tensor([300]),
    }


@torch.no_grad()
def test_one_frame_without_image_tokens_is_what_the_backbone_makes_of_it(files: StartFiles, pipeline: Any) -> None:
    assert files.sd15 is not None
    x = inputs(1)
    unet = UNet2DConditionModel.from_pretrained(files.sd15 / "unet")
    wanted = unet(x["clip"][:, :, 0], x["timestep"], x["text"]).sample
    # Keys and values of image tokens have no bias: of zeros they make zeros.
    found = pipeline.unet(x["clip"], x["timestep"], x["text"], torch.zeros_like(x["tokens"])).sample
    torch.testing.assert_close(found[:, :, 0], wanted, rtol=1e-4, atol=1e-5)
    assert (pipeline.unet(x["clip"], x["timestep"], x["text"], x["tokens"]).sample[:, :, 0] - wanted).abs().max() > 1e-3


@torch.no_grad()
def test_equal_frames_are_too_where_motion_is_silent(files: StartFiles, pipeline: Any) -> None:
    assert files.sd15 is not None
    x = inputs(1)
    unet = UNet2DConditionModel.from_pretrained(files.sd15 / "unet")
    wanted = unet(x["clip"][:, :, 0], x["timestep"], x["text"]).sample
    clip, tokens = x["clip"].expand(-1, -1, 3, -1, -1), torch.zeros_like(x["tokens"])
    moving = pipeline.unet(clip, x["timestep"], x["text"], tokens).sample
    assert (moving[:, :, 1] - wanted).abs().max() > 1e-3
    outputs = [
        module.proj_out for name, module in pipeline.unet.named_modules() if re.search(r"motion_modules\.\d$", name)
    ]
    kept = [{name: tensor.clone() for name, tensor in output.state_dict().items()} for output in outputs]
    for output in outputs:
        for parameter in output.parameters():
            parameter.zero_()
    still = pipeline.unet(clip, x["timestep"], x["text"], tokens).sample
    for output, state in zip(outputs, kept, strict=True):
        output.load_state_dict(state)
    for frame in range(3):
        torch.testing.assert_close(still[:, :, frame], wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_adapters_and_controlnets_add_nothing_yet(pipeline: XDynaPipeline) -> None:
    x = inputs(3)
    adapters = [m.processor for n, m in pipeline.unet.named_modules() if n.endswith("attn1") and ".attentions." in n]
    queries = [m.to_q for n, m in pipeline.unet.named_modules() if n.endswith("attn1") and ".attentions." in n]
    assert adapters
    for adapter, query in zip(adapters, queries, strict=True):
        assert not adapter.to_out_ref.weight.any()
        assert not adapter.to_out_ref.bias.any()
        assert torch.equal(adapter.to_q_ref.weight, query.weight)
    for net, channels in ((pipeline.controlnet, 3), (pipeline.controlnet_face, 6)):
        maps = torch.rand(2, channels, 128, 64)
        down, mid = control_residuals([(net, maps)], x["clip"], x["timestep"], x["text"])
        assert not any(residual.any() for residual in (*down, mid))
        encoder = net.down_blocks.state_dict()
        copied = {n: t for n, t in pipeline.unet.down_blocks.state_dict().items() if n in encoder}
        assert len(copied) == len(encoder)
        assert all(torch.equal(copied[name], tensor) for name, tensor in encoder.items())


def test_motion_modules_of_both_layouts_are_the_same(files: StartFiles, pipeline: XDynaPipeline) -> None:
    assert files.motion is not None
    adapter = MotionAdapter.from_pretrained(files.motion.with_name("motion"))
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], tensor)
    folder = StartFiles(None, files.sd15, files.motion.with_name("motion"), files.image_encoder, files.ip_adapter)
    other = starting_pipeline("sd15", folder, 1).unet.state_dict()
    assert all(torch.equal(other[name], tensor) for name, tensor in pipeline.unet.state_dict().items())


def test_image_keys_and_values_sit_where_ip_adapter_counts_them(files: StartFiles, pipeline: XDynaPipeline) -> None:
    wanted = torch.load(files.ip_adapter, weights_only=True)["ip_adapter"]
    names = [name for name in backbone().attn_processors if name.endswith("attn2.processor")]
    state = pipeline.unet.state_dict()
    for index, name in enumerate(names):
        assert torch.equal(state[f"{name}.to_k_ip.0.weight"], wanted[f"{2 * index + 1}.to_k_ip.weight"])
        assert torch.equal(state[f"{name}.to_v_ip.0.weight"], wanted[f"{2 * index + 1}.to_v_ip.weight"])


def test_what_does_not_fit_is_named(files: StartFiles, tmp_path: Path) -> None:
    def start(**changed: Path | None) -> None:
        starting_pipeline("sd15", StartFiles(**{**vars(files), **changed}), 0)

    with pytest.raises(InputError, match="--motion"):
        start(motion=None)
    released = torch.load(files.motion, weights_only=True)["state_dict"]
    lost = next(name for name in released if name.endswith("ff_norm.weight"))
    torch.save({n: t for n, t in released.items() if n != lost}, tmp_path / "lost.ckpt")
    with pytest.raises(InputError, match=r"lost\.ckpt: .*missing .*motion_modules.*norm3\.weight"):
        start(motion=tmp_path / "lost.ckpt")
    torch.save(released | {"down_blocks.0.motion_modules.7.more": torch.ones(1)}, tmp_path / "more.ckpt")
    with pytest.raises(InputError, match=r"unexpected down_blocks\.0\.motion_modules\.7\.more"):
        start(motion=tmp_path / "more.ckpt")
    flat = next(name for name in released if name.endswith(".pe"))
    torch.save(released | {flat: released[flat].flatten()}, tmp_path / "flat.ckpt")
    with pytest.raises(InputError, match=r"flat\.ckpt: .*pos_embed\.pe is \[768\], expected \[1, 24, 32\]"):
        start(motion=tmp_path / "flat.ckpt")
    torch.save(released | {"module.conv_in.weight": torch.ones(32, 4, 3, 3)}, tmp_path / "both.ckpt")
    with pytest.raises(InputError, match=r"both\.ckpt: holds a backbone, too \(conv_in\.weight\)"):
        start(motion=tmp_path / "both.ckpt")
    torch.save({"other": torch.ones(1)}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="holds no motion modules"):
        start(motion=tmp_path / "other.ckpt")
    whole = torch.load(files.ip_adapter, weights_only=True)
    del whole["ip_adapter"]["3.to_v_ip.weight"]
    torch.save(whole, tmp_path / "ip.bin")
    with pytest.raises(InputError, match=r"ip\.bin: .*missing .*to_v_ip\.0\.weight"):
        start(ip_adapter=tmp_path / "ip.bin")
    with pytest.raises(InputError, match="no model there"):
        start(sd15=tmp_path)
    config = tiny.vision_config()
    config.hidden_size *= 2
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "vision")
    with pytest.raises(InputError, match=rf"image_encoder makes {2 * WIDTH} channels, image_projection takes {WIDTH}"):
        start(image_encoder=tmp_path / "vision")


def with_backbone(files: StartFiles, folder: Path, **other: Any) -> StartFiles:
    """The same files, with another backbone in the folder of SD 1.5."""
    assert files.sd15 is not None
    sd15 = shutil.copytree(files.sd15, folder / "sd15", ignore=shutil.ignore_patterns("unet"))
    backbone(**other).save_pretrained(sd15 / "unet")
    return replace(files, sd15=sd15)


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


def test_the_file_that_is_wrong_is_named(files: StartFiles, tmp_path: Path) -> None:
    wide = with_backbone(files, tmp_path, time_embedding_dim=256)
    with pytest.raises(InputError, match=r"sd15/unet: .*time_embedding\.linear_1\.weight is \[256, 32\], expected"):
        starting_pipeline("sd15", wide, 0)
    whole = torch.load(files.ip_adapter, weights_only=True)
    whole["ip_adapter"]["more"] = torch.ones(1)
    torch.save(whole, tmp_path / "more.bin")
    with pytest.raises(InputError, match=r"more\.bin: .*unexpected more"):
        starting_pipeline("sd15", replace(files, ip_adapter=tmp_path / "more.bin"), 0)


def test_pictures_of_few_rows_are_read_row_by_row(pipeline: XDynaPipeline) -> None:
    """CLIP's processor took three rows for three channels."""
    low = np.random.default_rng(0).integers(0, 256, (3, 80, 3), dtype=np.uint8)
    wanted = pipeline.feature_extractor(Image.fromarray(low), return_tensors="pt").pixel_values[0]
    assert torch.equal(Encoders(pipeline).preprocess(low), wanted)

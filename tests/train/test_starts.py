"""Starting from Stable Diffusion 1.5: what is copied is the same, what is new adds nothing, what is wrong is named."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MotionAdapter, UNet2DConditionModel
from PIL import Image
from start_files import WIDTH, backbone, inputs, with_backbone, write_files
from transformers import CLIPVisionModelWithProjection
from xdyna_model import tiny
from xdyna_model.controlnets import control_residuals
from xdyna_model.errors import InputError
from xdyna_model.pipeline import XDynaPipeline
from xdyna_train.encoding import Encoders
from xdyna_train.starts import StartFiles, starting_pipeline


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StartFiles:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def pipeline(files: StartFiles) -> XDynaPipeline:
    return starting_pipeline("sd15", files, 0)


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

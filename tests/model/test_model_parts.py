"""Models put together of parts: released files become one that animates, parts that do not fit get one clear line."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection
from xdyna_model import tiny
from xdyna_model.checkpoint_files import read_released
from xdyna_model.conditions import Conditions
from xdyna_model.errors import InputError
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.model_folder import convert, load_pipeline
from xdyna_model.pixel_codec import PixelCodec
from xdyna_model.unet import XDynaUNet


def wide_image_encoder():
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**tiny.vision_config().to_dict() | {"hidden_size": 64}))


# Components that do not fit each other


def wide_text_encoder():
    return CLIPTextModel(CLIPTextConfig(**tiny.text_config().to_dict() | {"hidden_size": 64}))


def control(condition=3, **other):
    return ControlNetModel(conditioning_channels=condition, **tiny.CONDITION_EMBEDDING, **tiny.BACKBONE | other)


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("image_encoder", wide_image_encoder, "image_encoder makes 64 channels, image_projection takes 32"),
        ("text_encoder", wide_text_encoder, "text_encoder makes 64 channels, unet takes 32"),
        (
            "image_projection",
            lambda: ImageProjection(embed_dims=32, output_dims=48, hidden_dims=48, depth=1, dim_head=4),
            "image_projection makes 48 channels, unet takes 32",
        ),
        ("controlnet", lambda: control(cross_attention_dim=48), "text_encoder makes 32 channels, controlnet takes 48"),
        (
            "controlnet_face",
            lambda: control(6, cross_attention_dim=48),
            "text_encoder makes 32 channels, controlnet_face takes 48",
        ),
        ("controlnet", lambda: control(in_channels=8), "vae makes 4 channels, controlnet takes 8"),
        ("controlnet_face", lambda: control(6, in_channels=8), "vae makes 4 channels, controlnet_face takes 8"),
        ("vae", lambda: AutoencoderKL(**tiny.VAE, latent_channels=8), "vae makes 8 channels, unet takes 4"),
        ("controlnet", lambda: control(6), "pose_map makes 3 channels, controlnet takes 6"),
        ("controlnet_face", lambda: control(3), "face_map makes 6 channels, controlnet_face takes 3"),
        ("vae", lambda: PixelCodec(2), "vae makes 12 channels, unet takes 4"),
    ],
)
def test_components_that_do_not_fit(folder, name, make, says):
    shutil.rmtree(folder / name)
    component = make()
    component.save_pretrained(folder / name)
    if isinstance(component, PixelCodec):
        index = json.loads((folder / "model_index.json").read_text())
        index["vae"] = ["xdyna_model.pixel_codec", "PixelCodec"]
        (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"^{folder}: {says}; take both from one model$"):
        load_pipeline(folder)


def test_channels_given_for_each_level(folder):
    for last in (32, 48):
        shutil.rmtree(folder / "unet")
        denoiser = XDynaUNet(**tiny.BACKBONE | {"cross_attention_dim": (32, 32, 32, last)})
        denoiser.save_pretrained(folder / "unet")
        if last == 32:
            load_pipeline(folder)
    with pytest.raises(InputError, match=r"text_encoder makes 32 channels, unet takes \[32, 32, 32, 48\]"):
        load_pipeline(folder)


# Released files


class Evil:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("content", ["code", "text", "empty", "list"])
def test_what_is_no_checkpoint_is_refused(tmp_path, capsys, content):
    path = tmp_path / "file.ckpt"
    if content == "code":
        path.write_bytes(pickle.dumps({"state_dict": Evil()}))
    elif content == "list":
        torch.save([torch.zeros(1)], path)
    else:
        path.write_text("no pickle" if content == "text" else "")
    with pytest.raises(InputError, match=str(path)) as caught:
        read_released(path)
    assert "code ran" not in capsys.readouterr().out
    assert "\n" not in str(caught.value)


def test_bare_pickles_of_old_are_read(tmp_path):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    torch.save({"state_dict": tensors}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    read = read_released(tmp_path / "old.ckpt")["state_dict"]
    assert list(read) == ["a", "b"]
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    (tmp_path / "old.ckpt").write_bytes((tmp_path / "old.ckpt").read_bytes()[:-10])
    with pytest.raises(InputError, match=r"old\.ckpt: is not a checkpoint of tensors, or is damaged"):
        read_released(tmp_path / "old.ckpt")


def resampler():
    """An image projection by released names: 12 heads of 4, the tiny model's widths."""
    shapes = {
        "latents": (1, 16, 48),
        "proj_in.weight": (48, 32),
        "proj_in.bias": (48,),
        "proj_out.weight": (32, 48),
        "proj_out.bias": (32,),
        "norm_out.weight": (32,),
        "norm_out.bias": (32,),
        **{f"layers.0.0.{norm}.{part}": (48,) for norm in ("norm1", "norm2") for part in ("weight", "bias")},
        "layers.0.0.to_q.weight": (48, 48),
        "layers.0.0.to_kv.weight": (96, 48),
        "layers.0.0.to_out.weight": (48, 48),
        "layers.0.1.0.weight": (48,),
        "layers.0.1.0.bias": (48,),
        "layers.0.1.1.weight": (192, 48),
        "layers.0.1.3.weight": (48, 192),
    }
    return {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}


@pytest.fixture
def released(tmp_path, oracle):
    """The released files, tiny: what `convert` takes, as keyword arguments."""
    for name, weights in (
        ("unet", {"state_dict": {f"module.{k}": v for k, v in oracle("unet").weights.items()}}),
        ("pose", oracle("controlnet_pose").weights),
        ("face", oracle("controlnet_face").weights),
        ("ip_adapter", {"image_proj": resampler(), "ip_adapter": {"1.to_k_ip.weight": torch.zeros(1)}}),
    ):
        torch.save(weights, tmp_path / f"{name}.ckpt")
    return {name: tmp_path / f"{name}.ckpt" for name in ("unet", "pose", "face", "ip_adapter")}


def test_convert_makes_a_folder_that_animates(tiny_folder, released, tmp_path, oracle):
    out = tmp_path / "converted"
    convert(sd15=tiny_folder, image_encoder=tiny_folder / "image_encoder", out=out, **released)
    pipeline = load_pipeline(out)
    assert torch.equal(pipeline.unet.conv_in.weight, oracle("unet").weights["conv_in.weight"])
    pipeline.set_progress_bar_config(disable=True)
    picture = np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8)
    generator = torch.Generator().manual_seed(0)
    frames = pipeline(
        picture, Conditions.blank(2, 64, 64), num_inference_steps=1, generator=generator, output_type="np"
    ).frames
    assert frames.shape == (1, 2, 64, 64, 3)
    assert np.isfinite(frames).all()


def test_convert_refuses_swapped_controlnets(tiny_folder, released, tmp_path):
    released["pose"], released["face"] = released["face"], released["pose"]
    with pytest.raises(InputError, match="takes 6 condition channels, the pose ControlNet has 3"):
        convert(sd15=tiny_folder, image_encoder=tiny_folder / "image_encoder", out=tmp_path / "out", **released)
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_convert_refuses_what_does_not_fit(tiny_folder, released, tmp_path):
    wide_image_encoder().save_pretrained(tmp_path / "vision")
    with pytest.raises(InputError, match="image_encoder makes 64 channels, image_projection takes 32"):
        convert(sd15=tiny_folder, image_encoder=tmp_path / "vision", out=tmp_path / "out", **released)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [("nan", "not a number or infinite: .*conv_in.bias"), ("text", "holds other things than tensors")],
)
def test_convert_names_file_and_tensor(tiny_folder, released, tmp_path, oracle, fault, message):
    weights = oracle("unet").weights
    wrong = weights["conv_in.bias"] * float("nan") if fault == "nan" else "text"
    torch.save({**weights, "conv_in.bias": wrong}, released["unet"])
    with pytest.raises(InputError, match=f"unet.ckpt: {message}"):
        convert(sd15=tiny_folder, image_encoder=tiny_folder / "image_encoder", out=tmp_path / "out", **released)
    assert not (tmp_path / "out").exists()

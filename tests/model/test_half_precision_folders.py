"""Folders that have their weights in half precision only, as many fine-tunes are published."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel
from xdyna_model import tiny
from xdyna_model.errors import InputError
from xdyna_model.model_folder import load_component, load_pipeline
from xdyna_model.unet import XDynaUNet

HALF_UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
HALF_TEXT = "text_encoder/model.fp16.safetensors"


@pytest.fixture(scope="module")
def half_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, saved as the variant fp16: not to be changed."""
    folder = tmp_path_factory.mktemp("half") / "model"
    tiny.tiny_pipeline().to(dtype=torch.float16).save_pretrained(folder, variant="fp16")
    assert (folder / HALF_UNET).exists()
    assert (folder / HALF_TEXT).exists()
    assert not [path for path in folder.rglob("*.safetensors") if ".fp16." not in path.name]
    return folder


def test_half_precision_is_read_where_there_is_nothing_else(half_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(half_folder, tmp_path / "model")
    (folder / "text_encoder" / "openvino_model.bin").write_bytes(b"none of these weights")
    loaded = load_pipeline(folder)
    for name, component in tiny.tiny_pipeline().components.items():
        if isinstance(component, torch.nn.Module):
            theirs = loaded.components[name].state_dict()
            for key, tensor in component.state_dict().items():
                expected = tensor.half().float() if tensor.is_floating_point() else tensor
                assert torch.equal(theirs[key], expected), key


def test_full_precision_is_read_where_there_are_both(tiny_folder: Path, half_folder: Path, tmp_path: Path) -> None:
    for name, kind in (("unet", XDynaUNet), ("text_encoder", CLIPTextModel)):
        shutil.copytree(tiny_folder / name, tmp_path / name)
        for file in (half_folder / name).glob("*.safetensors"):
            shutil.copy(file, tmp_path / name)
        both, full = load_component(kind, tmp_path / name), load_component(kind, tiny_folder / name)
        assert all(torch.equal(both.state_dict()[key], tensor) for key, tensor in full.state_dict().items())


@pytest.mark.parametrize("kind", [UNet2DConditionModel, CLIPTextModel])
def test_in_several_files(kind: type, tmp_path: Path) -> None:
    """As diffusers and transformers write what is larger than a file may be."""
    torch.manual_seed(0)
    model = kind(tiny.text_config()) if kind is CLIPTextModel else kind(**tiny.BACKBONE)
    model.half().save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.fp16-*-of-*.safetensors"))) > 1
    loaded = load_component(kind, tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("file", [HALF_UNET, HALF_TEXT])
@pytest.mark.parametrize("fault", ["missing", "extra", "nan"])
def test_every_tensor_is_still_accounted_for(half_folder: Path, tmp_path: Path, file: str, fault: str) -> None:
    folder = shutil.copytree(half_folder, tmp_path / "model")
    tensors = load_file(folder / file)
    name = next(key for key in tensors if key.endswith((".layer_norm2.weight", "conv_out.weight")))
    if fault == "missing":
        del tensors[name]
    elif fault == "extra":
        tensors["surprise"] = torch.zeros(3)
    else:
        tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, folder / file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="surprise" if fault == "extra" else name.removeprefix("text_model.")):
        load_pipeline(folder)

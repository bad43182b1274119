"""Pipeline folders: loading one strictly, and making one of Stable Diffusion 1.5 and the released files."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna_model import checkpoints
from xdyna_model.checkpoint_files import check_finite, listed, named_tensors, read_released, read_tensors
from xdyna_model.component_fit import check_defaults, check_fit, check_use
from xdyna_model.errors import InputError, naming
from xdyna_model.hub import download
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.outputs import staged_folder
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.pixel_codec import PixelCodec
from xdyna_model.positional_unet import PositionalUNet
from xdyna_model.refusals import is_out_of_memory
from xdyna_model.sampling import released_scheduler
from xdyna_model.unet import XDynaUNet

INDEX = "model_index.json"
# Components that hold weights.
_WEIGHTS: dict[str, type] = {
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "unet": XDynaUNet,
    "controlnet": ControlNetModel,
    "controlnet_face": ControlNetModel,
    "image_encoder": CLIPVisionModelWithProjection,
    "image_projection": ImageProjection,
}
# What these may be instead, where the folder's index names it.
_ALTERNATIVES: dict[str, type] = {"vae": PixelCodec, "unet": PositionalUNet}
_STEMS = ("model", "pytorch_model", "diffusion_pytorch_model")  # of the names of files with weights
_REPORTS = {"missing": "missing_keys", "unexpected": "unexpected_keys", "wrong shape of": "mismatched_keys"}


def load_pipeline(source: str | Path, dtype: torch.dtype = torch.float32) -> XDynaPipeline:
    """Loads a pipeline folder, or one from a hub by its id ("owner/name"), and trusts nothing in it.

    Raises:
        InputError: no such folder or model, a component is missing or damaged, a tensor is missing, unexpected,
            of the wrong shape or not finite, two components do not fit each other, a default is out of range, or a
            scheduler or image processor is of a kind that cannot be used; the message names it.
    """
    folder = _local_folder(source)
    index = _read_index(folder)
    components = [p.name for p in inspect.signature(XDynaPipeline.__init__).parameters.values() if p.default is p.empty]
    if absent := [name for name in components if name != "self" and not _names_class(index.get(name))]:
        raise InputError(f"{folder}: not an X-Dyna pipeline, model_index.json lacks {', '.join(absent)}")
    with naming(folder / INDEX):
        check_defaults(index)
    modules = {name: load_component(_kind(name, index), folder / name, dtype) for name in _WEIGHTS}
    modules["tokenizer"] = load_tokenizer(folder / "tokenizer")
    with naming(folder):
        check_fit(**modules)
    try:
        pipeline = XDynaPipeline.from_pretrained(folder, **modules)
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise InputError(f"{folder}: {_first_line(error)}") from error
    with naming(folder / INDEX):
        check_use(pipeline.scheduler, pipeline.feature_extractor, pipeline.default_steps)
    return pipeline


def convert(
    sd15: str | Path,
    unet: str | Path,
    pose: str | Path,
    face: str | Path,
    image_encoder: str | Path,
    ip_adapter: str | Path,
    out: str | Path,
) -> None:
    """Makes a pipeline folder of the released files; either all of it is written or nothing.

    Args:
        sd15: Stable Diffusion 1.5 as a diffusers folder; its VAE, text encoder and tokenizer are used.
        unet, pose, face: the three released `.ckpt` files.
        image_encoder: CLIP ViT-H of IP-Adapter as a transformers folder.
        ip_adapter: IP-Adapter Plus for SD 1.5; only its image projection is used.
        out: the folder to make; must not exist, or be empty.

    Raises:
        InputError: a file cannot be used, or two do not fit each other; the message names it and the tensor, or
            both components.
    """
    sd15, image_encoder = Path(sd15), Path(image_encoder)
    with staged_folder(out) as draft:
        vision = load_component(CLIPVisionModelWithProjection, image_encoder)
        side = vision.config.image_size
        pipeline = XDynaPipeline(
            vae=load_component(AutoencoderKL, sd15 / "vae"),
            text_encoder=load_component(CLIPTextModel, sd15 / "text_encoder"),
            tokenizer=load_tokenizer(sd15 / "tokenizer"),
            unet=_convert_unet(Path(unet)),
            controlnet=_convert_controlnet(Path(pose), conditioning_channels=3),
            controlnet_face=_convert_controlnet(Path(face), conditioning_channels=6),
            image_encoder=vision,
            feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side),
            image_projection=convert_image_projection(Path(ip_adapter)),
            scheduler=released_scheduler(),
        )
        check_fit(**pipeline.components)
        pipeline.save_pretrained(draft)


def _convert_unet(path: Path) -> XDynaUNet:
    with naming(path):
        released = named_tensors(read_released(path))
        config, state = checkpoints.unet_config(released), checkpoints.convert_unet(released)
        return _fill(XDynaUNet, config, state)


def _convert_controlnet(path: Path, conditioning_channels: int) -> ControlNetModel:
    with naming(path):
        released = named_tensors(read_released(path))
        config, state = checkpoints.controlnet_config(released), checkpoints.convert_controlnet(released)
        if (channels := config["conditioning_channels"]) != conditioning_channels:
            kind = "pose" if conditioning_channels == 3 else "face"
            raise InputError(f"takes {channels} condition channels, the {kind} ControlNet has {conditioning_channels}")
        return _fill(ControlNetModel, config, state)


def convert_image_projection(path: Path) -> ImageProjection:
    """The resampler in the file of IP-Adapter Plus. Raises InputError naming the file and its tensor."""
    with naming(path):
        released = read_tensors(path, "image_proj")
        config, state = checkpoints.image_projection_config(released), checkpoints.convert_image_projection(released)
        return _fill(ImageProjection, config, state)


def _fill(kind: type[nn.Module], config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    with torch.device("meta"):
        module = kind(**config)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()


def load_component(kind: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers or transformers model from its folder, with every tensor accounted for. Weights in half precision are
    read where there are no others."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no model there (no config.json); give a complete folder")
    options: dict[str, Any] = {"output_loading_info": True, "local_files_only": True, "variant": _variant(folder)}
    if kind.__module__.startswith("transformers."):  # reports wrong shapes by name only if they are to be ignored
        options |= {"dtype": dtype, "ignore_mismatched_sizes": True}
    else:
        options |= {"torch_dtype": dtype}
    try:
        module, report = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{folder}: cannot be loaded: {_first_line(error)}") from error
    problems = [f"{what} {listed(map(_shown, report[key]))}" for what, key in _REPORTS.items() if report[key]]
    if problems:
        raise InputError(f"{folder}: the weights do not fit the {kind.__name__}: {'; '.join(problems)}")
    with naming(folder):
        check_finite(module.state_dict().items())
    return module


def _variant(folder: Path) -> str | None:
    """What libraries call the weights of a folder that has them in half precision only; None where there are others."""
    weights = [path for path in folder.iterdir() if path.name.startswith(_STEMS)]
    suffixes = [path.suffixes for path in weights if path.suffix in (".safetensors", ".bin")]
    half = any(first.startswith(".fp16") for first, *_ in suffixes)  # .fp16, or .fp16-00001-of-00002
    return "fp16" if half and all(len(some) > 1 for some in suffixes) else None


def _shown(report: str | tuple) -> str:
    """A tensor of a library's report: its name, with both shapes where they differ."""
    return report if isinstance(report, str) else f"{report[0]} ({list(report[1])}, expected {list(report[2])})"


def _names_class(entry: object) -> bool:
    """Whether an entry of the index is as diffusers writes it: a library and a class in it."""
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)


def _kind(name: str, index: dict[str, Any]) -> type:
    """The class of a component: of the few that this package knows, never one that a folder brings along."""
    other = _ALTERNATIVES.get(name)
    return other if other is not None and index[name][1:] == [other.__name__] else _WEIGHTS[name]


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Raises InputError where the folder holds none."""
    if not (folder / "tokenizer_config.json").is_file():  # without files transformers makes one that knows no words
        raise InputError(f"{folder}: no tokenizer there (no tokenizer_config.json); give a complete folder")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: cannot be loaded: {_first_line(error)}") from error


def _local_folder(source: str | Path) -> Path:
    folder = Path(source)
    if folder.is_dir():
        run = not (folder / INDEX).exists() and (folder / "model" / INDEX).exists()  # of xdyna-train fit
        return folder / "model" if run else folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise InputError(f"{source}: no such folder; give a pipeline folder or a hub id like owner/name")
    return download(str(source))


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{folder}: not a pipeline folder, it has no model_index.json") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON; download the model again") from error
    return index if isinstance(index, dict) else {}


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.partition(". If you want")[0]  # diffusers goes on with advice for those who want other weights

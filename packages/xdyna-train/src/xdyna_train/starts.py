"""Where training starts: a small model from scratch, Stable Diffusion 1.5 as in the paper, or any saved pipeline."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, MotionAdapter, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPVisionModelWithProjection
from xdyna_model import checkpoints
from xdyna_model.checkpoint_files import listed, read_tensors
from xdyna_model.component_fit import check_fit
from xdyna_model.errors import InputError, naming
from xdyna_model.model_folder import (
    convert_image_projection,
    load_component,
    load_pipeline,
    load_tokenizer,
)
from xdyna_model.motion import MotionModule
from xdyna_model.nano import GPU_SIZE, nano_pipeline
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.sampling import released_scheduler
from xdyna_model.tiny import tiny_pipeline
from xdyna_model.unet import RELEASED, XDynaUNet

from xdyna_train.config import Start

_ADAPTER = re.compile(r"\.processor\.to_(q|out)_ref\.")
# Settings of a backbone that the denoiser cannot be told of, or does not heed, with what it computes. Most leave no
# trace in the tensors.
COMPUTED: dict[str, tuple[object, ...]] = {
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "act_fn": ("silu", "swish"),
    "dual_cross_attention": (False,),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "class_embeddings_concat": (False,),
    "addition_embed_type": (None,),
    "encoder_hid_dim_type": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
}
_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}


@dataclass(frozen=True)
class StartFiles:
    """What a start may be made of.

    init: a pipeline folder to go on from, in place of everything else.
    sd15: Stable Diffusion 1.5 as a diffusers folder. motion: AnimateDiff v1's motion modules, its own file or a
    diffusers folder. image_encoder: CLIP ViT-H of IP-Adapter as a transformers folder. ip_adapter: the file of
    IP-Adapter Plus for SD 1.5.
    """

    init: Path | None = None
    sd15: Path | None = None
    motion: Path | None = None
    image_encoder: Path | None = None
    ip_adapter: Path | None = None


def starting_pipeline(model: Start, files: StartFiles, seed: int) -> XDynaPipeline:
    """The pipeline to train, float32 on the CPU. seed: of the weights of a model from scratch.

    Raises InputError where a file is missing or does not fit; the message names it.
    """
    if files.init is not None:
        return load_pipeline(files.init)
    match model:
        case "tiny":
            return tiny_pipeline(seed)
        case "nano":
            return nano_pipeline(seed)
        case "nano-gpu":
            return nano_pipeline(seed, GPU_SIZE)
        case "sd15":
            return _from_stable_diffusion(files)


def _from_stable_diffusion(files: StartFiles) -> XDynaPipeline:
    """X-Dyna, Section 4.1: denoiser and ControlNets are copies of SD 1.5, the motion modules are AnimateDiff's. Both
    ControlNets and the Dynamics-Adapters add nothing yet."""
    sd15, motion, image_encoder, ip_adapter = files.sd15, files.motion, files.image_encoder, files.ip_adapter
    if sd15 is None or motion is None or image_encoder is None or ip_adapter is None:
        raise InputError(
            "starting from Stable Diffusion 1.5 takes --sd15, --motion, --image-encoder and --ip-adapter; or give the "
            "folder of a pipeline as --init"
        )
    backbone = load_component(UNet2DConditionModel, sd15 / "unet")
    vision = load_component(CLIPVisionModelWithProjection, image_encoder)
    side = vision.config.image_size
    pipeline = XDynaPipeline(
        vae=load_component(AutoencoderKL, sd15 / "vae"),
        text_encoder=load_component(CLIPTextModel, sd15 / "text_encoder"),
        tokenizer=load_tokenizer(sd15 / "tokenizer"),
        unet=denoiser(backbone, sd15 / "unet", motion, ip_adapter),
        controlnet=ControlNetModel.from_unet(backbone, conditioning_channels=3).eval(),
        controlnet_face=ControlNetModel.from_unet(backbone, conditioning_channels=6).eval(),
        image_encoder=vision,
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side),
        image_projection=convert_image_projection(ip_adapter),
        scheduler=released_scheduler(),
    )
    check_fit(**pipeline.components)
    return pipeline


def denoiser(backbone: UNet2DConditionModel, source: Path, motion: Path, ip_adapter: Path) -> XDynaUNet:
    """A denoiser with the backbone's weights, motion modules and image attention of files, and untrained adapters.

    source: where the backbone comes from. Raises InputError where a setting of the backbone is not what the denoiser
    computes, or where a tensor is missing, unexpected or of another shape; the message names the file and all of them.
    """
    with naming(source):
        _check_settings(backbone)
    modules = _motion_modules(motion)
    positions = [
        tensor.shape[1] for name, tensor in modules.items() if name.endswith("pos_embed.pe") and tensor.ndim > 1
    ]
    if not positions:
        raise InputError(f"{motion}: holds no motion modules (no pos_encoder.pe); give AnimateDiff's for SD 1.5")
    with torch.device("meta"):
        unet = XDynaUNet.from_unet2d(backbone, load_weights=False)
        config = dict(unet.config)
    config |= {
        "sample_size": RELEASED["sample_size"],
        "motion_max_seq_length": positions[0],
        "use_motion_mid_block": any(name.startswith("mid_block.") for name in modules),
    }
    unet: XDynaUNet = XDynaUNet.from_config(config)  # pyright: ignore[reportAssignmentType]
    image, own = _image_attention(backbone, ip_adapter), backbone.state_dict()
    if both := own.keys() & modules.keys():  # of some other model, whose files hold all of it
        raise InputError(f"{motion}: holds a backbone, too ({listed(both)}); give a file of motion modules alone")
    state = own | modules | image
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items() if not _ADAPTER.search(name)}
    wrong = checkpoints.misfits(state, shapes)
    if any(name in modules or ".motion_modules." in name for name in wrong):
        source = motion
    elif any(name in image or "_ip." in name for name in wrong):
        source = ip_adapter
    with naming(source):
        checkpoints.check("denoiser", state, shapes)
    unet.load_state_dict(unet.state_dict() | state)  # the adapters are in no file
    unet.reset_adapters()
    return unet.eval()


def _check_settings(backbone: UNet2DConditionModel) -> None:
    """Raises InputError that names a setting of the backbone which would be lost, or which no denoiser can have."""
    config = backbone.config
    for name, computed in COMPUTED.items():
        of_levels = config[name] if isinstance(config[name], list | tuple) else [config[name]]
        if not set(computed).issuperset(of_levels):
            raise InputError(f"{name} is {config[name]!r}, a denoiser computes {computed[0]!r}; take another model")
    for name in ("down_block_types", "up_block_types"):
        if not _BLOCKS.issuperset(config[name]):
            raise InputError(f"{name} is {list(config[name])}, a denoiser has blocks of {', '.join(sorted(_BLOCKS))}")
    channels, groups = list(config["block_out_channels"]), MotionModule.NORM_GROUPS
    if any(number % groups for number in channels):
        raise InputError(f"block_out_channels is {channels}, expected multiples of {groups} for motion modules")


def _motion_modules(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return load_component(MotionAdapter, path).state_dict()
    with naming(path):
        return checkpoints.convert_motion_modules(read_tensors(path, "state_dict"))


def _image_attention(backbone: UNet2DConditionModel, path: Path) -> dict[str, Tensor]:
    """The keys and values for image tokens. IP-Adapter numbers all attentions in the backbone's order."""
    attentions = [name for name in backbone.attn_processors if name.endswith("attn2.processor")]
    names = {
        f"{2 * index + 1}.to_{part}_ip.weight": f"{name}.to_{part}_ip.0.weight"
        for index, name in enumerate(attentions)
        for part in ("k", "v")
    }
    return {names.get(name, name): tensor for name, tensor in read_tensors(path, "ip_adapter").items()}

"""The trained nets as one module, and the parts that stages train or freeze."""

import hashlib
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from xdyna_model.controlnets import control_residuals
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.positional_unet import DriftingAdapter

from xdyna_train.config import Part
from xdyna_train.gathering import gathered

# The keys' places, as the keys, belong to the backbone.
_ADAPTER = re.compile(r"\.processor\.to_(q_ref|q_ref_place|q_ref_drift|drift|out_ref)\.")


class Trainee(nn.Module):
    """Denoiser, ControlNets and image projection of a pipeline, wrapped once for DDP or FSDP."""

    def __init__(self, pipeline: XDynaPipeline) -> None:
        super().__init__()
        self.unet = pipeline.unet
        self.controlnet = pipeline.controlnet
        self.controlnet_face = pipeline.controlnet_face
        self.image_projection = pipeline.image_projection

    def forward(
        self, clip: Tensor, timesteps: Tensor, text: Tensor, image_features: Tensor, pose: Tensor, face: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The prediction for frames 1..F, [B, C, F, h, w], and what their tokens guess of drifts: float32 logits of A
        adapters, [A, B, F, N, heads, 8]; [0] of a denoiser that guesses nothing, and without gradients.

        clip: [B, C, 1+F, h, w], frame 0 the clean reference. timesteps: [B]. text: [B, T, E].
        image_features: [B, L, E'], hidden states of the image encoder. pose: [B, F, 3, H, W]; face: [B, F, 6, H, W].
        """
        tokens = self.image_projection(image_features)
        nets = [(self.controlnet, pose), (self.controlnet_face, face)]
        down, mid = control_residuals(nets, clip, timesteps, text)
        prediction = self.unet(clip, timesteps, text, tokens, down, mid).sample[:, :, 1:]
        guesses = []
        for part in self.unet.modules():
            if isinstance(part, DriftingAdapter) and part.guesses is not None:
                guesses.append(part.guesses[:, 1:])
                part.guesses = None
        return prediction, torch.stack(guesses) if guesses else prediction.new_zeros(0)


def part_of(name: str) -> Part:
    """The part that a parameter of a `Trainee` belongs to, by its name."""
    net, _, inner = name.partition(".")
    match net:
        case "controlnet" | "controlnet_face" | "image_projection":
            return net
        case _ if _ADAPTER.search(inner):
            return "adapter"
        case _ if "motion_modules." in inner:
            return "motion"
        case _:
            return "backbone"


def train_only(trainee: Trainee, parts: Iterable[Part]) -> list[nn.Parameter]:
    """Freezes all other parts; returns the parameters that are trained."""
    parts, trained = set(parts), []
    for name, parameter in trainee.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)
        if parameter.requires_grad:
            trained.append(parameter)
    return trained


def frozen_hash(module: nn.Module) -> str:
    """SHA-256 over names and bytes of all that is not trained now. Of a model that is shared out, all processes call it
    together."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            value = gathered(parameter) if isinstance(parameter, DTensor) else parameter
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

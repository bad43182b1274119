"""One training step of the paper's first stage at full size: seconds, peak memory, share spent waiting for data.
`python bench/train_step.py --help`

The weights are random and the clips are puppets; time and memory do not depend on what they show. The loop is that of
`xdyna-train fit`, stopped before it would write its first checkpoint. What an H200 gave is in bench/baselines.
"""

import argparse
import json
import resource
import statistics
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import machine
import torch
from diffusers import AutoencoderKL, ControlNetModel
from output_file import output_file
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from xdyna_model import tiny
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.sampling import released_scheduler
from xdyna_model.unet import XDynaUNet
from xdyna_train.config import PRESETS, Config
from xdyna_train.journal import METRICS
from xdyna_train.puppet_source import PuppetSource
from xdyna_train.train import fit

GIB = 2**30
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
# OpenAI's ViT-L/14 text tower with the words of `tiny.tokenizer`, and the ViT-H/14 image tower that IP-Adapter takes.
TEXT = tiny.text_config()
TEXT.update({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12})
VISION = CLIPVisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    patch_size=14,
    projection_dim=1024,
)


class Enough(BaseException):
    """Ends the loop: unlike an Exception, no failed sample."""


def full_size(device: torch.device) -> XDynaPipeline:
    """The released model's sizes with random weights, made on `device`. Its prompt is always empty."""
    with torch.device(device):
        pipeline = XDynaPipeline(
            vae=AutoencoderKL(**VAE),
            text_encoder=CLIPTextModel(TEXT),
            tokenizer=tiny.tokenizer(),
            unet=XDynaUNet(),
            controlnet=ControlNetModel(cross_attention_dim=768, conditioning_channels=3),
            controlnet_face=ControlNetModel(cross_attention_dim=768, conditioning_channels=6),
            image_encoder=CLIPVisionModelWithProjection(VISION),
            feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=224),
            image_projection=ImageProjection(),
            scheduler=released_scheduler(),
        )
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.eval()
    return pipeline


def one_stage(size: str, batch: int, steps: int, workers: int) -> Config:
    """The first stage of the preset for that size, so long that its checkpoint is never due."""
    config = PRESETS["paper" if size == "full" else "smoke"]
    stage = replace(config.stages[0], batch=batch, steps=steps + 1, epochs=0.0)
    return replace(config, stages=(stage,), workers=workers, checkpoint_every=steps + 1, sample_every=steps)


def run(pipeline: XDynaPipeline, config: Config, out: Path) -> list[dict]:
    """The lines that the loop wrote, one a step."""

    def stop(_pipeline: XDynaPipeline, _step: int) -> None:
        raise Enough

    with suppress(Enough):
        fit(pipeline, PuppetSource(config.height, config.width), config, out, sampler=stop)
    lines = map(json.loads, (out / METRICS).read_text().splitlines())
    return [line for line in lines if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: whether this runs at all")
    parser.add_argument("--batch", type=int, default=1, help="clips of a step (1)")
    parser.add_argument("--steps", type=int, default=6, help="the first is left out of the medians (6)")
    parser.add_argument("--workers", type=int, default=2, help="processes that make clips (2)")
    parser.add_argument("--json", type=output_file, help="write the figures here too")
    options = parser.parse_args()
    if min(options.batch, options.workers + 1) < 1 or options.steps < 2:
        parser.error("--batch from 1, --steps from 2, --workers from 0")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = one_stage(options.size, options.batch, options.steps, options.workers)
    pipeline = full_size(device) if options.size == "full" else tiny.tiny_pipeline()
    with tempfile.TemporaryDirectory() as folder:
        lines = run(pipeline, config, Path(folder) / "run")[1:]
    found = {key: statistics.median(line[key] for line in lines) for key in ("seconds", "waited")}
    found["waiting_share"] = sum(line["waited"] for line in lines) / sum(line["seconds"] for line in lines)
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    found["peak_gib"] = peak / GIB
    shape = f"{options.batch} x {config.stages[0].frames} frames of {config.width}x{config.height}"
    print(f"training step, {options.size}, {shape}, {config.precision}, {device.type}")
    print("  {seconds:.3f} s, {waiting_share:.1%} of it waiting for data, {peak_gib:.2f} GiB peak".format(**found))
    if options.json:
        record = {"size": options.size, "shape": shape, "precision": config.precision, "workers": options.workers}
        record |= {"machine": machine.facts(device), "medians": found, "steps": lines}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""One step of the full-size denoiser: seconds and peak memory. `uv run bench/denoise.py --help`

The weights are random; time and memory do not depend on them. For comparison on a CPU, the released code takes 48 to
53 CPU-seconds and 6.0 GiB for the default shape (float32, 1 + 16 frames of 32x18 latents, no guidance).
"""

import argparse
import json
import platform
import resource
import statistics
import time

import torch
from output_file import output_file
from torch import nn
from xdyna_model.devices import DTYPES, choose_device, return_freed_memory
from xdyna_model.errors import InputError
from xdyna_model.unet import XDynaUNet

GIB = 2**30
MAX_FRAMES = 24  # of AnimateDiff's motion modules, as `XDynaUNet` has them by default


def build(device: torch.device, dtype: torch.dtype) -> XDynaUNet:
    """The full-size denoiser with small random weights, made in place: no second copy counts as peak memory."""
    with torch.device("meta"):
        unet = XDynaUNet().eval().requires_grad_(False)
    nn.Module.to(unet, dtype)  # diffusers' own `to` warns of casting, even on the meta device
    unet.to_empty(device=device)
    for module in unet.modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor.uniform_(-0.02, 0.02)
        if isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
            module.weight.fill_(1)
    return unet


def inputs(batch: int, frames: int, height: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    return draw(batch, 4, 1 + frames, height, width), 501, draw(batch, 77, 768), draw(batch, 16, 768)


def measure(unet: XDynaUNet, arguments: tuple, device: torch.device) -> dict[str, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        finite = bool(torch.isfinite(unet(*arguments).sample).all())
    if device.type == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of the whole process so far
    if not finite:
        raise SystemExit("the result is not finite: the figures would mean nothing")
    return {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "peak_gib": peak / GIB}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=16, help="frames beside the reference (16)")
    parser.add_argument("--height", type=int, default=32, help="of the latents (32)")
    parser.add_argument("--width", type=int, default=18, help="of the latents (18)")
    parser.add_argument("--guidance", action="store_true", help="a batch of two, as with guidance")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps after the first (3)")
    parser.add_argument("--json", type=output_file, help="write the figures here too")
    options = parser.parse_args()
    if min(options.frames, options.height, options.width, options.repeats + 1) < 1:
        parser.error("--frames, --height and --width from 1, --repeats from 0")
    if options.frames > MAX_FRAMES:
        parser.error(f"--frames: the motion modules know {MAX_FRAMES}")
    try:
        device, dtype = choose_device(options.device), DTYPES[options.dtype]
    except InputError as error:
        parser.error(str(error))

    return_freed_memory()  # as `xdyna animate` does
    torch.manual_seed(0)
    unet = build(device, dtype)
    batch = 2 if options.guidance else 1
    arguments = inputs(batch, options.frames, options.height, options.width, device, dtype)
    runs = [measure(unet, arguments, device) for _ in range(1 + options.repeats)]

    print(
        f"denoiser step, {batch} x (1 + {options.frames}) x {options.height}x{options.width} latents, {options.dtype}"
    )
    for index, run in enumerate(runs):
        note = "  (first)" if index == 0 else ""
        print(f"  {run['s']:7.2f} s  {run['cpu_s']:7.2f} CPU-s  {run['peak_gib']:5.2f} GiB peak{note}")
    median = {key: statistics.median(run[key] for run in runs[1:] or runs) for key in runs[0]}
    print(f"  {median['s']:7.2f} s  {median['cpu_s']:7.2f} CPU-s  {runs[-1]['peak_gib']:5.2f} GiB peak  (median)")
    if options.json:
        facts = {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
        shape = [batch, 1 + options.frames, options.height, options.width]
        record = {"shape": shape, "dtype": options.dtype, "device": str(device), "median": median, "runs": runs}
        options.json.write_text(json.dumps(record | facts, indent=1) + "\n")


if __name__ == "__main__":
    main()

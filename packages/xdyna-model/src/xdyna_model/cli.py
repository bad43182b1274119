"""The command `xdyna`. Heavy imports wait inside the commands, so that `xdyna --help` answers at once."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from xdyna_model.job import Job, check_job
from xdyna_model.refusals import refuse_empty, refusing

app = typer.Typer(
    help="Animate a photo of a person with the motion of a video.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `xdyna` with argv, or the process's arguments, and exit: 0 done, 2 bad input (stderr says what: one line, or
    typer's box where an option itself is wrong), 130 interrupted. Any other failure is a defect here and raises."""
    with refusing("xdyna", "lower --width and --height, or --frames, or use --dtype bf16 or fp16"):
        refuse_empty(sys.argv[1:] if argv is None else argv)
        app(args=argv, prog_name="xdyna")
    raise AssertionError("typer exits by itself")


@app.command()
def animate(
    reference: Annotated[Path | None, typer.Option(help="Photo of the person. Default: the built-in example.")] = None,
    driving: Annotated[Path | None, typer.Option(help="Video whose motion the person takes over.")] = None,
    pose: Annotated[
        Path | None, typer.Option(help="Ready-made pose video, instead of reading the driving video.")
    ] = None,
    face_local: Annotated[Path | None, typer.Option(help="Ready-made video of eyes and mouth.")] = None,
    face_global: Annotated[Path | None, typer.Option(help="Ready-made video of the face.")] = None,
    dwpose: Annotated[
        Path | None, typer.Option(help="Folder with DWPose's two ONNX files, in place of mediapipe.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model folder or hub id. Default: the built-in nano model.")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames to make. Default: as many as the video has.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Denoising steps, 250 at most. Default: the model's, 25 for the released.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Classifier-free guidance; 1 and below turn it off, at half the cost. Default: the model's, 7.5 for "
            "the released."
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels, a multiple of 8. Default: the model's.")] = None,
    height: Annotated[int | None, typer.Option(help="Height in pixels, a multiple of 8. Default: the model's.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="The same seed on the same device gives the same video.")
    ] = 42,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:1 and so on.")] = "auto",
    dtype: Annotated[
        Literal["auto", "fp32", "fp16", "bf16"], typer.Option(help="Numbers; auto: fp16 on a GPU, else fp32.")
    ] = "auto",
    loop: Annotated[bool, typer.Option(help="Long videos: denoise the end together with the start, or not.")] = True,
    fps: Annotated[float | None, typer.Option(help="Frames per second of the result. Default: the video's.")] = None,
    out: Annotated[Path, typer.Option(help="The video to write (MP4).")] = Path("xdyna.mp4"),
    preview: Annotated[bool, typer.Option(help="Also write inputs and result side by side, as MP4 and PNG.")] = True,
) -> None:
    """Animate a photo. Without arguments: the built-in example."""
    job = Job(**locals())
    check_job(job)  # before the seconds that the imports take
    quiet()
    from xdyna_model.animate import animate as run

    run(job, typer.echo)


@app.command()
def convert(
    sd15: Annotated[Path, typer.Option(help="Folder of Stable Diffusion 1.5, in the layout of diffusers.")],
    unet: Annotated[Path, typer.Option(help="Released denoiser, unet-checkpoint-epoch-5.ckpt.")],
    pose: Annotated[Path, typer.Option(help="Released pose ControlNet, controlnet-checkpoint-epoch-5.ckpt.")],
    face: Annotated[Path, typer.Option(help="Released face ControlNet, controlnet-face-checkpoint-epoch-2.ckpt.")],
    image_encoder: Annotated[Path, typer.Option(help="Folder of the CLIP image encoder of IP-Adapter.")],
    ip_adapter: Annotated[
        Path, typer.Option(help="IP-Adapter-Plus weights, ip-adapter-plus_sd15.bin or .safetensors.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, for --model of animate.")],
) -> None:
    """Turn the released files into one model folder. Every weight must be there and fit."""
    quiet()
    from xdyna_model import model_folder

    model_folder.convert(sd15, unet, pose, face, image_encoder, ip_adapter, out)
    typer.echo(f"Wrote {out}; use it with: xdyna animate --model {out}")


def quiet() -> None:
    """Keep libraries' notes to developers out of the terminal; `python -W default -m ...` brings warnings back."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()

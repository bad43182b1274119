"""A look at a model while it is trained: one case, the same at every look, written as a video."""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from xdyna_model.conditions import Conditions
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.preview import contact_sheet, side_by_side
from xdyna_model.video import write_video

from xdyna_train.fusion import Batch

FPS = 8  # of the videos, whatever the clip's own


class SampleVideo:
    """A `Sampler` of `train.fit`: writes out/samples/step-XXXXXXXX.mp4, and a sheet of it to tensorboard."""

    def __init__(self, batch: Batch, out: Path, seed: int) -> None:
        """batch: one clip. seed: of the noise to start from."""
        self._out, self._seed = out, seed
        self._reference = _bytes(batch.reference[:1] / 2 + 0.5)  # [1, H, W, 3]
        self._truth, self._pose = _bytes(batch.frames[0] / 2 + 0.5), _bytes(batch.pose[0])
        self._conditions = Conditions(self._pose, _bytes(batch.face[0, :, :3]), _bytes(batch.face[0, :, 3:]))

    def __call__(self, pipeline: XDynaPipeline, step: int) -> None:
        """Raises InputError where the video cannot be written."""
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(self._seed)
        clips = pipeline(
            self._reference[0], self._conditions, wrap=False, generator=generator, output_type="pt", return_dict=False
        )[0]
        made = _bytes(torch.nan_to_num(clips[0]))
        streams = {"reference": self._reference, "pose": self._pose, "result": made, "truth": self._truth}
        folder = self._out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"step-{step:08d}.mp4", side_by_side(streams), FPS)
        with SummaryWriter(str(self._out / "tensorboard")) as board:
            board.add_image("sample", np.asarray(contact_sheet(streams)), step, dataformats="HWC")


def _bytes(pixels: Tensor) -> np.ndarray:
    """[F, 3, H, W] in [0, 1] -> [F, H, W, 3] uint8."""
    return (rearrange(pixels, "f c h w -> f h w c") * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()

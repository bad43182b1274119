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
        clip = (batch.reference[:1], batch.frames[0], batch.pose[0], batch.face[0, :, :3], batch.face[0, :, 3:])
        # [1, H, W, 3], then [F, H, W, 3] each
        self._reference, self._truth, self._pose, local, whole = map(_channels_last, clip)
        self._conditions = Conditions(self._pose, local, whole)

    def __call__(self, pipeline: XDynaPipeline, step: int) -> None:
        """Raises InputError where the video cannot be written."""
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(self._seed)
        clips = pipeline(
            self._reference[0], self._conditions, wrap=False, generator=generator, output_type="pt", return_dict=False
        )[0]
        made = _channels_last((torch.nan_to_num(clips[0]) * 255).round().clamp(0, 255).to(torch.uint8))
        streams = {"reference": self._reference, "pose": self._pose, "result": made, "truth": self._truth}
        folder = self._out / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"step-{step:08d}.mp4", side_by_side(streams), FPS)
        with SummaryWriter(str(self._out / "tensorboard")) as board:
            board.add_image("sample", np.asarray(contact_sheet(streams)), step, dataformats="HWC")


def _channels_last(pictures: Tensor) -> np.ndarray:
    """[F, 3, H, W] uint8 -> [F, H, W, 3]."""
    return rearrange(pictures, "f c h w -> f h w c").cpu().numpy()

"""How good a picture looks, without another to compare it with.

The embedded score needs no weights. It is a product of four measures, each in [0, 1], of the luma at the picture's own
resolution, so any one of them can spoil a picture:

    sharpness   1 where edges are steeper than a blur of nine pixels leaves them: Crete et al. 2007, "The blur effect",
                after a median of 3x3 pixels, which noise does not survive
    cleanness   1 without noise: Immerkaer 1996, "Fast noise variance estimation", in the calmest quarter of the picture
    wholeness   1 without steps on a grid of eight pixels, the blocks of JPEG and MPEG: after Wang, Sheikh, Bovik 2002
    exposure    1 where at most a quarter of the pixels is quite black or white, 0 where all are

It falls with blur, noise, compression and burnt-out light in a clean picture. Noise over a picture that is blocky
already hides the blocks and can raise it.

Whoever has the weights of a learnt score (KonIQ-10k and the like) gives them as an ONNX file to `OnnxQuality`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from einops import rearrange
from PIL import Image, ImageFilter
from xdyna_model.errors import InputError
from xdyna_model.images import fit
from xdyna_model.onnx_session import open_session

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_BLUR = 9  # pixels
_GRID = 8  # pixels
_PATCH = 16  # pixels
# Crete's blur of pictures that look perfectly sharp, and of such as are good for nothing.
_SHARP, _BLURRED = 0.25, 0.75
# Noise (of 1) that takes cleanness to 1 / e: 13 levels of 255.
_NOISE = 0.05
# Steps on the grid exceed the others by this much in pictures that were never compressed.
_CHANCE = 0.1
_CLIPPED = 0.25


class QualityModel(Protocol):
    """Scores a picture."""

    def __call__(self, frame: np.ndarray) -> float:
        """frame: [H, W, 3] uint8 RGB. Returns a score in [0, 1]; more is better."""
        ...


@dataclass(frozen=True)
class Quality:
    """The four measures of a picture, each in [0, 1], and their product."""

    sharpness: float
    cleanness: float
    wholeness: float
    exposure: float

    @property
    def score(self) -> float:
        return self.sharpness * self.cleanness * self.wholeness * self.exposure


def picture_quality(frame: np.ndarray) -> float:
    """The embedded `QualityModel`: `measure(frame).score`."""
    return measure(frame).score


def measure(frame: np.ndarray) -> Quality:
    """frame: [H, W, 3] uint8 RGB. Raises ValueError for a side below 32 pixels, where there is little to measure."""
    if min(frame.shape[:2]) < 2 * _PATCH:
        raise ValueError(f"quality is measured in pictures of at least 32 pixels a side, not {list(frame.shape)}")
    luma = frame @ _LUMA / 255  # [H, W]
    calm = Image.fromarray((luma * 255).round().astype(np.uint8)).filter(ImageFilter.MedianFilter(3))
    smooth = np.asarray(calm, np.float32) / 255
    blur = max(_blur(smooth), _blur(smooth.T))
    noise = _noise(luma)
    block = max(_blockiness(luma, noise), _blockiness(luma.T, noise))
    clipped = float(((luma < 0.02) | (luma > 0.98)).mean())
    return Quality(
        sharpness=float(np.clip((_BLURRED - blur) / (_BLURRED - _SHARP), 0, 1)),
        cleanness=float(np.exp(-noise / _NOISE)),
        wholeness=1 / (1 + max(0.0, block - _CHANCE)),
        exposure=1 - max(0.0, clipped - _CLIPPED) / (1 - _CLIPPED),
    )


def _blur(luma: np.ndarray) -> float:
    """Crete's blur along the rows, 0 (sharp) to 1: how little of the variation a further blur takes away."""
    total = np.pad(luma.astype(np.float64), ((0, 0), (1, 0))).cumsum(axis=1)
    blurred = (total[:, _BLUR:] - total[:, :-_BLUR]) / _BLUR  # [H, W - 8], its column x the mean around x + 4
    inner = luma[:, _BLUR // 2 : -(_BLUR // 2)]
    steps, blurred_steps = np.abs(np.diff(inner)), np.abs(np.diff(blurred))
    lost = np.maximum(0, steps - blurred_steps).sum()
    return 1 - float(lost / max(steps.sum(), 1e-9))


def _noise(luma: np.ndarray) -> float:
    """The standard deviation of white noise, of 1, by Immerkaer's mask in patches: their lower quartile."""
    rows = luma[:-2] - 2 * luma[1:-1] + luma[2:]
    mask = np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:])
    height, width = (side // _PATCH * _PATCH for side in mask.shape)
    patches = rearrange(mask[:height, :width], "(y p) (x q) -> (y x) (p q)", p=_PATCH, q=_PATCH)
    return float(np.sqrt(np.pi / 2) / 6 * np.quantile(patches.mean(1), 0.25))


def _blockiness(luma: np.ndarray, noise: float) -> float:
    """How much steps from column to column are larger on a grid of eight than off it: 0 = not at all."""
    rows = len(luma) // _GRID * _GRID
    # The edge of a block is as long as the block, noise is not: average along it, and take away what noise is left.
    strips = rearrange(luma[:rows], "(y p) x -> y p x", p=_GRID).mean(1)
    steps = np.abs(np.diff(strips)).mean(0)  # [W - 1]
    steps = np.sqrt(np.maximum(0, steps**2 - 4 / np.pi * noise**2 / _GRID))
    phases = np.array([steps[phase::_GRID].mean() for phase in range(_GRID)])
    grid = phases.max()
    others = (phases.sum() - grid) / (_GRID - 1)
    return float(grid / max(others, 1e-9)) - 1


class OnnxQuality:
    """A `QualityModel` over an ONNX file: one picture in, [1, 3, H, W] float32, one number out.

    A fixed input size is met by `images.fit`; a model of any size gets the frame as it is.
    """

    def __init__(
        self,
        path: str | Path,
        best: float = 100.0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    ) -> None:
        """best: the number that stands for a score of 1; KonIQ-10k's opinions end at 100. mean, std: of RGB in [0, 1],
        with which the model was trained; ImageNet's by default.

        Raises InputError where onnxruntime is not installed, or the file is missing or no such model.
        """
        self.path = Path(path)
        self._session = open_session(self.path, "quality", ["CPUExecutionProvider"])
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] != 3:
            raise InputError(f"{path}: is no quality model, its input is not [1, 3, height, width] but {shape}")
        self._input = inputs[0].name
        self._size = (shape[2], shape[3]) if all(isinstance(side, int) for side in shape[2:]) else None
        self._best, self._mean, self._std = best, np.array(mean, np.float32), np.array(std, np.float32)

    def __call__(self, frame: np.ndarray) -> float:
        """frame: [H, W, 3] uint8 RGB. Raises InputError where the model does not answer with one number."""
        picture = frame if self._size is None else fit(frame, *self._size)
        blob = rearrange((picture.astype(np.float32) / 255 - self._mean) / self._std, "h w c -> 1 c h w")
        answer = np.asarray(self._session.run(None, {self._input: np.ascontiguousarray(blob)})[0])
        if answer.size != 1 or not np.isfinite(answer).all():
            raise InputError(f"{self.path}: is no quality model, it answers {list(answer.shape)} numbers and not one")
        return float(np.clip(answer.item() / self._best, 0, 1))

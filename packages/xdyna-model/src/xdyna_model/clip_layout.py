"""How a clip lies in memory while it passes through the denoiser."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass
class ClipLayout:
    """Diffusers' blocks see frames folded into the batch, [B*F, ...], and do not say how many there are.

    One such object belongs to a denoiser, which sets it at the start of each call; every part that looks across
    frames holds it. This is the only place where the frame count is carried.
    """

    num_frames: int = 1

    def recomputing(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A function for gradient checkpointing, `checkpoint(function, *inputs)`, which computes anew in the layout of
        the call that is computed anew, where others have come since."""
        return partial(self._checkpoint, checkpoint)  # not a closure: the copy of a denoiser has a layout of its own

    def _checkpoint(self, checkpoint: Callable[..., Any], function: Callable[..., Any], *inputs: Any) -> Any:
        if torch.compiler.is_compiling():  # a program knows no other layout than its own
            return checkpoint(function, *inputs)
        then = copy.copy(vars(self))

        def compute(*inputs: Any) -> Any:
            now = copy.copy(vars(self))
            vars(self).update(then)
            try:
                return function(*inputs)
            finally:
                vars(self).update(now)

        return checkpoint(compute, *inputs)

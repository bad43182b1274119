"""What training runs on: its processes, its precision, and the ways of its device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, DistributedType
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from xdyna_model.errors import InputError

from xdyna_train.config import Precision


def new_accelerator(precision: Precision) -> Accelerator:
    """On GPUs where there are any, otherwise on the CPU; under `torchrun`, of all its processes.

    Raises InputError for fp16 without a GPU, and for ways to share the work that accelerate was told of otherwise.
    """
    gpu = torch.cuda.is_available()
    if precision == "fp16" and not gpu:
        raise InputError("precision fp16 needs a GPU; a CPU trains in bf16, or with precision no")
    accelerator = Accelerator(mixed_precision=precision, cpu=not gpu)
    plan = accelerator.distributed_type
    if plan not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise InputError(
            f"{plan.value}: not supported; start with torchrun, for DDP, or with --shard beside it, for FSDP"
        )
    return accelerator


class _WideAttention(TorchFunctionMode):
    """Attention in float32, whatever else autocast has in half."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function is not F.scaled_dot_product_attention:
            return function(*arguments, **named)
        with torch.autocast("cpu", enabled=False):
            wide = function(*map(_wide, arguments), **{name: _wide(x) for name, x in named.items()})
        return wide.to((arguments or [named["query"]])[0].dtype)


def _wide(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


@contextmanager
def attention_for(device: torch.device) -> Iterator[None]:
    """On a CPU, attention in float32. In bfloat16 the backward of PyTorch's fused attention takes twice as long there
    (the nano model, clips of six frames), and its plain products are up to 110 % off where scores are large."""
    if device.type != "cpu":
        yield
        return
    torch.set_flush_denormal(True)
    try:
        with _WideAttention():
            yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def captured(model: nn.Module, arguments: tuple[Tensor, ...], accelerator: Accelerator) -> Iterator[None]:
    """For the time of a block, forward and backward of `model` replay CUDA graphs, captured with tensors like
    `arguments`: all calls of its training then take tensors of those shapes. A small model otherwise leaves the GPU
    waiting for one launch after the other: the nano model's step of 12 clips of 16 frames took 0.23 to 0.35 s, and
    0.10 s from graphs (H100)."""
    with accelerator.autocast(AutocastKwargs(cache_enabled=False)):  # a cache filled before would not be captured
        torch.cuda.make_graphed_callables(model, arguments, allow_unused_input=True)
    try:
        yield
    finally:
        del model.__dict__["forward"]  # the one of its class again

"""Where a computation runs, in which numbers, and what to say when that place is too small."""

import ctypes
import re
import sys

import torch

from xdyna_model.errors import InputError

_M_MMAP_THRESHOLD = -3  # of <malloc.h>
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """name: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1". Raises InputError if there is no such one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if not kind:
        raise InputError(f"--device {name}: is unknown; use auto, cpu, cuda, or cuda:0 and so on")
    if name != "cpu":
        if not torch.cuda.is_available():
            raise InputError(f"--device {name}: no usable CUDA GPU on this machine; use --device cpu")
        count = torch.cuda.device_count()
        if int(kind[1] or 0) >= count:
            raise InputError(f"--device {name}: this machine's GPUs are cuda:0 to cuda:{count - 1}")
    return torch.device(name) if kind[1] is None else torch.device("cuda", int(kind[1]))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """name: a key of `DTYPES`, or "auto": fp16 on a GPU, fp32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def return_freed_memory() -> None:
    """Makes the C library hand every large freed tensor back to the system, on Linux with glibc; else does nothing.

    By itself glibc comes to keep freed blocks of up to 32 MiB, and full-size denoising on a CPU then holds on to some
    0.2 GiB that nothing uses.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)

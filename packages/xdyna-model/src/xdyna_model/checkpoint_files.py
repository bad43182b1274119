"""Checkpoint files: named tensors out of safetensors and pickles, and nothing else that a file may hold."""

import pickle
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xdyna_model.errors import InputError, naming

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # of weights
_MOST_NAMED = 5  # of the tensors that are wrong; the rest are counted


def read_released(path: Path) -> dict[str, Any]:
    """A checkpoint file of tensors: safetensors, or a pickle that is read with `weights_only=True` and nothing else.
    The pickle may be bare, as torch wrote it before 1.6.

    Raises InputError: missing, damaged, or a pickle with anything but plain containers and tensors in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # what comes of torch's doubts is an exception or nothing
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # A foreign or cut-off file shows as any of these, depending on where the damage lies.
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{path}: is not a checkpoint of tensors, or is damaged; download it again") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, expected named tensors")
    return state


def read_tensors(path: Path, part: str) -> dict[str, Tensor]:
    """The named tensors of one part of a checkpoint file, or all of it where it has no such part: what lies under that
    key, or, as in safetensors, which cannot nest, what has it before its names.

    Raises InputError as `read_released` and `named_tensors` do.
    """
    with naming(path):
        return named_tensors(_part(_part(read_released(path), "state_dict"), part))


def _part(state: Any, name: str) -> Any:
    """A part of a checkpoint, without its name, or all of it."""
    if not isinstance(state, dict):
        return state
    if name in state:
        return state[name]
    named = ((key, value) for key, value in state.items() if isinstance(key, str) and key.startswith(f"{name}."))
    return {key.removeprefix(f"{name}."): value for key, value in named} or state


def named_tensors(state: Any) -> dict[str, Tensor]:
    """The weights of a checkpoint, from under its `state_dict` where it has one.

    Raises InputError: there is anything but named tensors, or one is not dense, not of floating point with at least 16
    bits, or not finite.
    """
    state = _part(state, "state_dict")
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError("holds other things than tensors; expected named tensors, or those under 'state_dict'")
    if odd := [f"{name} ({kind})" for name, tensor in state.items() if (kind := _odd_kind(tensor))]:
        raise InputError(f"no plain weights: {listed(odd)}; expected dense fp64, fp32, fp16 or bf16")
    check_finite(state.items())
    return state


def _odd_kind(tensor: Tensor) -> str:
    """Layout and dtype of a tensor that cannot be taken for weights as it is, empty for one that can."""
    dtype, layout = str(tensor.dtype).removeprefix("torch."), str(tensor.layout).removeprefix("torch.")
    if tensor.layout != torch.strided:
        return f"{layout} {dtype}"
    return "" if tensor.dtype in _DTYPES else dtype


def check_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raises InputError that names tensors with values that are not finite."""
    broken = [name for name, tensor in tensors if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(f"not a number or infinite: {listed(broken)}; download or train it again")


def listed(names: Iterable[str]) -> str:
    """The first few names in order, and how many more there are."""
    names = sorted(names)
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")

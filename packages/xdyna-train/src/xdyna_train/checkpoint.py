"""Checkpoints that a crash cannot harm: written whole, checked by hash, and the one before kept."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from xdyna_model.errors import InputError
from xdyna_model.outputs import staged_folder

MOST_STEPS = 10**8 - 1  # a checkpoint's name has eight digits
_STATE, _SEAL = "state.pt", "seal.json"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes `folder/step-XXXXXXXX` and then removes all but the last `keep`, and later ones, which are out of date.

    state: tensors, numbers, and lists and dicts of these. Raises InputError where the disk is full or cannot be
    written to; earlier checkpoints are left as they were.
    """
    path = folder / f"step-{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(".step-*"):  # of a process that was killed while it wrote
            shutil.rmtree(draft)
        if path.exists():  # damaged, so that training went on from before it
            shutil.rmtree(path)
        with staged_folder(path) as draft:
            _write(draft, step, state)
        kept = [other for other in checkpoints(folder) if other <= path][-keep:]
        for other in checkpoints(folder):
            if other not in kept:
                shutil.rmtree(other)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path}: cannot be written ({reason}); free some space there, then resume") from error
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first, whole or not."""
    return sorted(path for path in folder.glob("step-????????") if path.is_dir())


def load_latest(folder: Path) -> tuple[int, dict[str, Any], list[Path]] | None:
    """The newest checkpoint that is whole: its step, its state, and newer ones that were passed over as damaged.

    None where there is no checkpoint at all. Raises InputError where there are some and all are damaged.
    """
    damaged: list[Path] = []
    for path in reversed(checkpoints(folder)):
        try:
            step = int(path.name.removeprefix("step-"))
            if json.loads((path / _SEAL).read_text()) != _seal(path, step):
                raise ValueError("broken seal")
            state = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        except (OSError, ValueError):
            damaged.append(path)
            continue
        return step, state, damaged
    if damaged:
        raise InputError(f"{folder}: none of its {len(damaged)} checkpoints is whole; remove the folder to start anew")
    return None


def _write(folder: Path, step: int, state: dict[str, Any]) -> None:
    with (folder / _STATE).open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # of torch's own, which covers that of a write that failed
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        file.flush()
        os.fsync(file.fileno())
    with (folder / _SEAL).open("w") as file:
        json.dump(_seal(folder, step), file)
        file.flush()
        os.fsync(file.fileno())


def _seal(folder: Path, step: int) -> dict[str, Any]:
    with (folder / _STATE).open("rb") as file:
        return {"step": step, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

"""Checkpoints that a crash cannot harm: written whole, checked by hash, and the one before kept."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from xdyna_model.errors import InputError
from xdyna_model.outputs import staged_folder

_STATE, _SEAL = "state.pt", "seal.json"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes `folder/step-XXXXXXXX` and then removes all but the last `keep`.

    state: tensors, numbers, and lists and dicts of these. Raises InputError where the disk is full or cannot be
    written to; earlier checkpoints are left as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}"
    if path.exists():  # of this very step, by a run that was resumed from before it
        shutil.rmtree(path)
    with staged_folder(path) as draft:
        torch.save(state, draft / _STATE)
        seal = {"step": step, "sha256": _hash(draft / _STATE)}
        (draft / _SEAL).write_text(json.dumps(seal))
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
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
            seal = json.loads((path / _SEAL).read_text())
            if _hash(path / _STATE) != seal["sha256"]:
                raise ValueError("hash")
            state = torch.load(path / _STATE, map_location="cpu", weights_only=True)
        except (OSError, ValueError, KeyError, TypeError):
            damaged.append(path)
            continue
        return seal["step"], state, damaged
    if damaged:
        raise InputError(f"{folder}: none of its {len(damaged)} checkpoints is whole; remove the folder to start anew")
    return None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

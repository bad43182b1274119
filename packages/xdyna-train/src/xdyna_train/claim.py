"""The folder of a training run, which is one run's at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from accelerate import Accelerator
from accelerate.utils import gather_object
from xdyna_model.errors import InputError

LOCK = ".lock"  # in the folder of a run, held by the one that is at work


@contextmanager
def claimed(out: Path, accelerator: Accelerator) -> Iterator[None]:
    """The folder for this run alone: a run that is started again may find the one before still ending. Raises
    InputError in every process where another run holds it."""
    refusal = None
    with ExitStack() as held:
        if accelerator.is_main_process:
            try:
                out.mkdir(parents=True, exist_ok=True)
                if not _locks(held.enter_context((out / LOCK).open("w"))):
                    refusal = f"{out}: another run is at work there; wait for it, or give another folder"
            except OSError as error:
                refusal = f"{out}: cannot be locked for this run ({(error.strerror or str(error)).lower()})"
        for said in gather_object([refusal]):
            if said is not None:
                raise InputError(said)
        yield


def _locks(file: IO[str]) -> bool:
    """Locks a file until it is closed; False where another process has."""
    try:
        # Not `flock`, which a loader's processes would inherit and hold on to after this one is killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX leaves it open which
        return False
    return True

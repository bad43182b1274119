"""How the commands refuse: one line on standard error and exit code 2 for what the user can put right."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NoReturn

from xdyna_model.errors import InputError


@contextmanager
def refusing(program: str, out_of_memory: str = "use a machine with more") -> Iterator[None]:
    """Exits with 2 and a line that begins with the program's name where what runs inside raises InputError, an OSError
    that names a file, or has no memory left, for which `out_of_memory` is the advice. All else is raised: a defect."""
    try:
        yield
    except InputError as error:
        _refuse(program, str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(program, f"{error.filename}: {(error.strerror or str(error)).lower()}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _refuse(program, f"out of memory; {out_of_memory}")


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raises InputError for an argument that is nothing: as a path, it would be the current folder."""
    words: list[str] = []
    for text in arguments:  # behind a bare -- there are no options
        words += text.split("=", 1) if text.startswith("--") and "--" not in words else [text]
    for before, word in pairwise(["the command", *words]):
        if not word:
            raise InputError(
                f"{before}: is followed by an empty argument, as of a shell variable that is not set; give a value"
            )


def is_out_of_memory(error: BaseException) -> bool:
    """True for the ways in which Python, NumPy and PyTorch say that memory ran out."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return any(sign in text for sign in ("can't allocate memory", "not enough memory", "ALLOC_FAILED"))


def _refuse(program: str, message: str) -> NoReturn:
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2) from None

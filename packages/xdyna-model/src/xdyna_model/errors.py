"""The one exception a user is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what is wrong, and what to do about it."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's name before the message of an InputError raised inside, unless it begins with it."""
    try:
        yield
    except InputError as error:
        raise error if str(error).startswith(str(path)) else InputError(f"{path}: {error}") from error

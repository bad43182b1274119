"""Files that are written whole or not at all."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xdyna_model.errors import InputError


def check_output(path: str | Path) -> None:
    """Say before a long computation what would keep `path` from being written after it.

    Raises InputError: the folder does not exist or cannot be written to, or `path` is there already and is not a
    file that may be replaced.
    """
    final, name = _end_of_links(path)
    try:
        _check_parent(final, name)
        if final.is_dir():
            raise InputError(f"{name}: is a folder; give the name of a file in it")
        if final.exists() and not final.is_file():
            raise InputError(f"{name}: is not a plain file; write somewhere else")
        if final.exists() and not os.access(final, os.W_OK):
            raise InputError(f"{name}: is write-protected; remove it, or write somewhere else")
        # Asking the file system is the only answer that holds on read-only mounts and for the superuser.
        draft = _draft(final)
        _create(draft)
        draft.unlink()
    except OSError as error:
        raise _unwritable(name, error) from error


@contextmanager
def staged(*paths: str | Path) -> Iterator[list[Path]]:
    """Give a temporary file beside each path; when the block ends, all take their names, in the order given.

    Whatever ends the block early (Ctrl-C too) removes the temporary files and leaves the paths as they were.
    Raises InputError where the system cannot write: a full disk, a quota, a folder without permission.
    """
    finals = [Path(os.path.realpath(path)) for path in paths]  # a link stays a link, what it points to is replaced
    drafts = [_draft(final) for final in finals]
    try:
        for draft in drafts:
            _create(draft)
        yield drafts
        for draft in drafts:
            _flush(draft)
        for draft, final in zip(drafts, finals, strict=True):
            draft.replace(final)
    except OSError as error:
        raise _unwritable(str(paths[0]), error) from error
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


@contextmanager
def staged_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its name when the block ends, and is removed otherwise.

    Raises InputError: `path` is there already and not an empty folder, is the current folder or a mount point, cannot
    be made, or the disk is full.
    """
    final, name = _end_of_links(path)
    # Under a new folder of that name, whoever is in the old one would be left in none.
    if final.exists() and final.samefile("."):
        raise InputError(f"{name}: is the current folder, which cannot be replaced; give the name of a new folder")
    if os.path.lexists(final) and not (final.is_dir() and not any(final.iterdir())):
        raise InputError(f"{name}: is there already; remove it, or give the name of a new folder")
    if os.path.ismount(final):
        raise InputError(f"{name}: is a mount point, which cannot be replaced; give the name of a new folder in it")
    _check_parent(final, name)
    draft = _draft(final)
    try:
        draft.mkdir()
        yield draft
        draft.replace(final)
    except OSError as error:
        raise _unwritable(name, error) from error
    except Exception as error:
        # safetensors has an exception of its own, and the system's number in its text.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise _unwritable(name, OSError(int(number[1]), os.strerror(int(number[1])))) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(draft)


def _end_of_links(path: str | Path) -> tuple[Path, str]:
    """Where `path` will be written, as in `staged`, and its name in messages, which says so where links lead away."""
    final = os.path.realpath(path)
    return (Path(path), str(path)) if final == os.path.abspath(path) else (Path(final), f"{path} (leads to {final})")


def _check_parent(path: Path, name: str) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{name}: the folder {path.parent} does not exist; create it first, or write somewhere else")


def _draft(path: Path) -> Path:
    """A name beside `path` that nobody uses: hidden, with the same suffix."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")


def _create(path: Path) -> None:
    """Make an empty file, with the permissions of any new file."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _flush(path: Path) -> None:
    """Wait until the bytes are on the disk, so that a crash after the renaming cannot leave an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(name: str, error: OSError) -> InputError:
    reason = (error.strerror or str(error)).lower()
    return InputError(f"{name}: cannot be written ({reason}); free some space there, or write somewhere else")

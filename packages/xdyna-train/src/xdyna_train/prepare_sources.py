"""Which videos there are to prepare: those in a folder, or those of a list."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from xdyna_model.errors import InputError

SUFFIXES = frozenset({".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"})


def find_videos(source: str | Path) -> dict[str, Path]:
    """Name -> path of every video, in the order of the names. Raises InputError where there is none.

    A folder is searched to the bottom, through links to folders too. A list's lines are paths from the folder that the
    list lies in; empty ones and those that begin with # are not looked at. Names are the lines, or the paths from the
    folder; as everywhere in Python, bytes in them that are no text are surrogates.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(path for path in _files(source) if path.suffix.lower() in SUFFIXES and path.is_file())
        videos = {path.relative_to(source).as_posix(): path for path in found}
        if not videos:
            raise InputError(f"{source}: holds no videos (of {', '.join(sorted(SUFFIXES))}); give another folder")
        return videos
    try:
        text = os.fsdecode(source.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{source}: no such folder or list; check the name") from error
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    if "\0" in text:  # in no path, and in nearly every file that is no text
        raise InputError(f"{source}: is neither a folder nor a text file of one path a line")
    lines = sorted(line.strip() for line in text.splitlines())
    videos = {line: source.parent / line for line in lines if line and not line.startswith("#")}
    if not videos:
        raise InputError(f"{source}: names no videos; write one path a line")
    return videos


def _files(top: Path) -> Iterator[Path]:
    """Every file below a folder. A folder that several paths lead to, as a link back up does, is searched once."""
    searched: set[tuple[int, int]] = set()
    # Links come after all that has a name without them, and so keeps it whatever is linked later.
    starts = deque([top])
    while starts:
        for folder, names, files in os.walk(starts.popleft()):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in searched:
                names.clear()
                continue
            searched.add((status.st_dev, status.st_ino))
            names.sort()
            paths = [Path(folder, name) for name in names]
            starts.extend(path for path in paths if path.is_symlink())
            yield from (Path(folder, name) for name in files)

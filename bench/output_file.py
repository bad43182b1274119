"""Where a bench writes to, checked before it runs for minutes."""

import argparse
import os
from pathlib import Path


def output_file(text: str) -> Path:
    """A `type` for argparse: the path of a file that can be written, in a folder that is there."""
    path = Path(text)
    try:
        if not path.parent.is_dir():
            raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{path} is a folder")
        there = path.exists()
        path.open("ab").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be written ({error.strerror})") from error
    if not there:
        os.unlink(path)
    return path

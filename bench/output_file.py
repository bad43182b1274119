"""Where a bench writes to, checked before it runs for minutes."""

import argparse
from pathlib import Path


def output_file(text: str) -> Path:
    """A `type` for argparse: the path of a file in a folder that is there."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    return path

"""Whether the limbs are where the pose says."""

from collections.abc import Sequence

import numpy as np
from xdyna_model.detectors import Person


def joints_on_figure(found: np.ndarray, persons: Sequence[Person]) -> float:
    """Share of the true body joints inside the frame whose pixel shows the figure, 0 to 1.

    found: [F, H, W] bool, of `find_figure`. persons: F true ones. Raises ValueError where no joint is in the frame.
    """
    frames, height, width = found.shape
    body = np.stack([person.body for person in persons])  # [F, 14, 3]
    columns, rows = np.floor(body[..., 0]).astype(int), np.floor(body[..., 1]).astype(int)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    if not inside.any():
        raise ValueError("no joint lies in any frame")
    frame = np.arange(frames)[:, None].repeat(body.shape[1], 1)
    return float(found[frame[inside], rows[inside], columns[inside]].mean())

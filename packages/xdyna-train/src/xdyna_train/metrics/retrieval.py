"""Whether a result shows its own pose and not another's."""

import numpy as np
from einops import rearrange


def retrieved(found: np.ndarray, masks: np.ndarray, own: int) -> float:
    """Share of the frames whose own true silhouette fits better than that of every other case at the same frame.

    found: [F, H, W] bool, of one result. masks: [N, F, H, W] bool, the truth of N cases, `own` among them; chance is
    1 / N. 0 to 1.
    """
    result = rearrange(found, "f h w -> f 1 (h w)").astype(np.float32)
    truths = rearrange(masks, "n f h w -> f n (h w)").astype(np.float32)
    both = (result @ truths.swapaxes(1, 2))[:, 0]  # [F, N]
    fit = both / np.maximum(result.sum(-1) + truths.sum(-1) - both, 1)
    others = np.delete(fit, own, axis=1).max(1, initial=0.0)
    return float((fit[:, own] > others).mean())

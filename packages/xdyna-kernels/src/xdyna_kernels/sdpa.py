"""Reference attention over `scaled_dot_product_attention`, for any device that PyTorch runs on."""

import torch.nn.functional as F
from torch import Tensor


def attend_both(
    q: Tensor,  # [B, F, N, H, D]
    k: Tensor,  # [B, F, N, H, D]
    v: Tensor,  # [B, F, N, H, D]
    q_ref: Tensor,  # [B, F, N, H, D]
    k_ref: Tensor,  # [B, M, H, D]
    v_ref: Tensor,  # [B, M, H, D]
) -> tuple[Tensor, Tensor]:  # [B, F, N, H*D] each
    """What `reference_attention` projects: each frame's attention to itself, and to the reference. For callers whose
    projections are more than weights and biases; shapes and dtypes as there, unchecked."""
    frames = q.shape[:3]  # B, F, N

    # 4-D throughout: 5-D inputs fall to the slow math path of scaled_dot_product_attention.
    def heads(x: Tensor) -> Tensor:  # [B, F, N, H, D] -> [B*F, H, N, D]
        return x.flatten(0, 1).transpose(1, 2)

    own = F.scaled_dot_product_attention(heads(q), heads(k), heads(v))

    # All frames look at one reference, so their queries form one long sequence and its keys are read once.
    queries = q_ref.flatten(1, 2).transpose(1, 2)  # [B, H, F*N, D]
    ref = F.scaled_dot_product_attention(queries, k_ref.transpose(1, 2), v_ref.transpose(1, 2))
    return own.transpose(1, 2).reshape(*frames, -1), ref.transpose(1, 2).reshape(*frames, -1)


def reference_attention_sdpa(
    q: Tensor,  # [B, F, N, H, D]
    k: Tensor,  # [B, F, N, H, D]
    v: Tensor,  # [B, F, N, H, D]
    q_ref: Tensor,  # [B, F, N, H, D]
    k_ref: Tensor,  # [B, M, H, D]
    v_ref: Tensor,  # [B, M, H, D]
    w_out: Tensor,  # [C, H*D]
    b_out: Tensor | None,  # [C]
    w_ref: Tensor,  # [C, H*D]
    b_ref: Tensor | None,  # [C]
    residual: Tensor | None,  # [B, F, N, C]
) -> Tensor:  # [B, F, N, C]
    own, ref = attend_both(q, k, v, q_ref, k_ref, v_ref)
    out = F.linear(own, w_out, b_out) + F.linear(ref, w_ref, b_ref)
    return out if residual is None else out + residual

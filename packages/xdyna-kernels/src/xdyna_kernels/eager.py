"""Reference attention in plain PyTorch, line by line: what every other backend is measured against."""

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt D) v, the softmax at float32 or better. q [B, H, N, D]; k, v [B, H, M, D]; result as q."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # scaled first: in float16 the bare product may overflow
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))
    return weights.to(v.dtype) @ v


def reference_attention_eager(
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
    frames = q.shape[:3]  # B, F, N

    # 4-D throughout: Inductor's attention fusion mistakes the axes of 5-D tensors (wrong results in torch 2.11).
    def heads(x: Tensor) -> Tensor:  # [B, F, N, H, D] -> [B*F, H, N, D]
        return x.flatten(0, 1).transpose(1, 2)

    def every_frame(x: Tensor) -> Tensor:  # [B, M, H, D] -> [B*F, H, M, D]
        return x.repeat_interleave(frames[1], dim=0).transpose(1, 2)

    own = attend(heads(q), heads(k), heads(v))  # [B*F, H, N, D]
    ref = attend(heads(q_ref), every_frame(k_ref), every_frame(v_ref))  # [B*F, H, N, D]

    own = own.transpose(1, 2).reshape(*frames, -1)  # [B, F, N, H*D]
    ref = ref.transpose(1, 2).reshape(*frames, -1)  # [B, F, N, H*D]
    out = own @ w_out.transpose(0, 1) + ref @ w_ref.transpose(0, 1)
    for term in (b_out, b_ref, residual):
        out = out if term is None else out + term
    return out

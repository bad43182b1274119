"""The Dynamics-Adapter: what every frame takes from the reference in spatial self-attention (X-Dyna, Section 3.2)."""

from typing import cast

import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn
from xdyna_kernels import reference_attention

from xdyna_model.clip_layout import ClipLayout


class DynamicsAdapter(nn.Module):
    """Attention processor for `attn1` of the spatial transformers.

    out = to_out(attend(q, k, v)) + to_out_ref(attend(to_q_ref(x), k[frame 0], v[frame 0]))

    Frame 0 is the reference and takes the residual too. Keys and values belong to the backbone and are shared;
    only `to_q_ref` (no bias) and `to_out_ref` are new.
    """

    def __init__(self, attn: Attention, layout: ClipLayout):
        super().__init__()
        self.layout = layout
        self.backend: str | None = None  # of `reference_attention`; None is the best one there is
        like = {"dtype": attn.to_q.weight.dtype, "device": attn.to_q.weight.device}
        self.to_q_ref = nn.Linear(attn.query_dim, attn.inner_dim, bias=False, **like)
        self.to_out_ref = nn.Linear(attn.inner_dim, attn.out_dim, **like)
        self.reset(attn)

    @torch.no_grad()
    def reset(self, attn: Attention) -> None:
        """Start of training (Section 3.2): the query is a copy of the backbone's, the output adds nothing."""
        self.to_q_ref.weight.copy_(attn.to_q.weight)
        nn.init.zeros_(self.to_out_ref.weight)
        nn.init.zeros_(self.to_out_ref.bias)

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [B*F, N, C]
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:  # [B*F, N, C]
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("DynamicsAdapter is for self-attention without a mask")

        def heads(x: Tensor) -> Tensor:
            return rearrange(x, "(b f) n (h d) -> b f n h d", f=self.layout.num_frames, h=attn.heads)

        to_k, to_v, to_out = cast(tuple[nn.Linear, ...], (attn.to_k, attn.to_v, attn.to_out[0]))  # pyright: ignore[reportOptionalSubscript]
        k, v = heads(to_k(hidden_states)), heads(to_v(hidden_states))
        out = reference_attention(
            heads(attn.to_q(hidden_states)),
            k,
            v,
            heads(self.to_q_ref(hidden_states)),
            k[:, 0],
            v[:, 0],
            to_out.weight,
            to_out.bias,
            self.to_out_ref.weight,
            self.to_out_ref.bias,
            backend=self.backend,
        )
        return rearrange(out, "b f n c -> (b f) n c")

"""The Dynamics-Adapter: what every frame takes from the reference in spatial self-attention (X-Dyna, Section 3.2)."""

from collections.abc import Sequence
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn
from xdyna_kernels import attend_both, reference_attention

from xdyna_model.clip_layout import ClipLayout


class DynamicsAdapter(nn.Module):
    """Attention processor for `attn1` of the spatial transformers.

    out = to_out(attend(q, k, v)) + to_out_ref(attend(to_q_ref(x), k[frame 0], v[frame 0]))

    Frame 0 is the reference and takes the residual too. Keys and values belong to the backbone and are shared;
    only `to_q_ref` (no bias) and `to_out_ref` are new. Raises ValueError for an `Attention` that does more than this.
    """

    def __init__(self, attn: Attention, layout: ClipLayout):
        super().__init__()
        if more := _does_more(attn):
            raise ValueError(f"DynamicsAdapter is for plain self-attention, this one has {', '.join(more)}")
        self.layout = layout
        self.backend: str | None = None  # of `reference_attention`; None is the best one there is
        self.packed: bool | None = None  # q, k, v, q' from one product, where `packable` allows it; None is on a GPU
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

        to_q, to_k, to_v, to_out = cast(tuple[nn.Linear, ...], (attn.to_q, attn.to_k, attn.to_v, attn.to_out[0]))  # pyright: ignore[reportOptionalSubscript]
        q, k, v, q_ref = map(heads, self._project(hidden_states, [to_q, to_k, to_v, self.to_q_ref]))
        attention = (q, k, v, q_ref, k[:, 0], v[:, 0])
        if is_plain(to_out, q) and is_plain(self.to_out_ref, q):
            # Under autocast the layers make q in half precision while the weights stay as they are.
            out = reference_attention(
                *attention,
                to_out.weight.to(q.dtype),
                None if to_out.bias is None else to_out.bias.to(q.dtype),
                self.to_out_ref.weight.to(q.dtype),
                None if self.to_out_ref.bias is None else self.to_out_ref.bias.to(q.dtype),
                backend=self.backend,
            )
        else:  # without the backend's kernels, which take nothing but weights
            own, ref = attend_both(*attention)
            out = to_out(own) + self.to_out_ref(ref)
        return rearrange(out, "b f n c -> (b f) n c")

    def _project(self, x: Tensor, layers: list[nn.Linear]) -> Sequence[Tensor]:
        """What each layer makes of `x` [B*F, N, C]; packed, they are views of one tensor [B*F, N, 4*C].

        One product reads `x` once instead of four times, which a GPU feels. A CPU does not: there, stacking the
        weights costs more than it saves (0.97 to 1.23 of the separate products' time at the denoiser's four levels).
        """
        if (x.is_cuda if self.packed is None else self.packed) and packable(layers):
            return F.linear(x, torch.cat([layer.weight for layer in layers])).chunk(len(layers), dim=-1)
        return [layer(x) for layer in layers]


def _does_more(attn: Attention) -> list[str]:
    """What an attention has that the adapter would leave out."""
    parts = ("group_norm", "spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
    more = [name for name in parts if getattr(attn, name, None) is not None]
    usual = {"residual_connection": False, "rescale_output_factor": 1, "scale_qk": True, "dropout": 0}
    more += [name for name, value in usual.items() if getattr(attn, name) != value]
    return more


def packable(layers: Sequence[nn.Module]) -> bool:
    """Whether one product with the stacked weights does all that the layers do, and nothing more.

    Only for plain layers without a bias. Stacked anew in each call, the weights may change in place, move, or be
    exchanged. Where some weights are trained and others frozen, the product's backward would compute derivatives of
    all.
    """
    if not all(is_plain(layer) and layer.bias is None for layer in layers):
        return False
    weights = [layer.weight for layer in layers]
    trained = torch.is_grad_enabled()
    return len({(w.shape, w.dtype, w.device, w.requires_grad and trained) for w in weights}) == 1


def is_plain(layer: nn.Module, beside: Tensor | None = None) -> TypeGuard[nn.Linear]:
    """Whether all that a layer does is in its weight and bias, and these lie on the device of `beside` where given.

    Not so what only looks like a linear layer (LoRA, quantised or sharded weights), nor a layer with a hook of its own
    (offloading).
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if type(layer) is not nn.Linear or type(layer.weight) not in (nn.Parameter, Tensor):
        return False
    if "forward" in layer.__dict__ or any(getattr(layer, name) for name in hooks):
        return False
    return beside is None or layer.weight.device == beside.device

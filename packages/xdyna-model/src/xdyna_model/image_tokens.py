"""Image tokens: the reference as CLIP sees it, in the cross-attention beside the text (IP-Adapter Plus)."""

from typing import cast

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from einops import rearrange
from torch import Tensor, nn

from xdyna_model.clip_layout import ClipLayout

NUM_IMAGE_TOKENS = 16


class ImageTokenAttention(IPAdapterAttnProcessor2_0):
    """Attention processor for `attn2`: two softmaxes over shared queries, summed before the output projection.

    Stock IP-Adapter processors want every token repeated per frame. Here text [B, 77, E] and image tokens
    [B, 16, E] stay as they are, and the frames of a clip are folded into the queries.
    """

    def __init__(self, attn: Attention, layout: ClipLayout):
        super().__init__(attn.inner_dim, attn.cross_attention_dim, num_tokens=(NUM_IMAGE_TOKENS,))
        self.layout = layout

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        attn: Attention,
        hidden_states: Tensor,  # [B*F, N, C]
        encoder_hidden_states: tuple[Tensor, Tensor],  # text [B, T, E], image tokens [B, 16, E]
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:  # [B*F, N, C]
        text, image = encoder_hidden_states
        to_k, to_v, to_out = cast(tuple[nn.Linear, ...], (attn.to_k, attn.to_v, attn.to_out[0]))  # pyright: ignore[reportOptionalSubscript]
        queries = rearrange(
            attn.to_q(hidden_states), "(b f) n (h d) -> b h (f n) d", f=self.layout.num_frames, h=attn.heads
        )

        def attend(keys: Tensor, values: Tensor) -> Tensor:
            keys, values = (rearrange(x, "b t (h d) -> b h t d", h=attn.heads) for x in (keys, values))
            return F.scaled_dot_product_attention(queries, keys, values)

        out = attend(to_k(text), to_v(text)) + attend(self.to_k_ip[0](image), self.to_v_ip[0](image))
        return to_out(rearrange(out, "b h (f n) d -> (b f) n (h d)", f=self.layout.num_frames))


class ImageProjection(IPAdapterPlusImageProjection, ModelMixin, ConfigMixin):
    """The resampler of IP-Adapter Plus as a pipeline component: CLIP hidden states [B, L, embed_dims] to image
    tokens [B, num_queries, output_dims]. Defaults are the released sizes (ViT-H features, SD 1.5 tokens).
    """

    @register_to_config
    def __init__(
        self,
        embed_dims: int = 1280,
        output_dims: int = 768,
        hidden_dims: int = 768,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_queries: int = NUM_IMAGE_TOKENS,
        ffn_ratio: float = 4,
    ):
        super().__init__(embed_dims, output_dims, hidden_dims, depth, dim_head, heads, num_queries, ffn_ratio)

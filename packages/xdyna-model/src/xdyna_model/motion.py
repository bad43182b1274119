"""Time: group norms over a whole clip, and motion modules that leave the reference frame alone."""

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from torch import Tensor, nn

from xdyna_model.clip_layout import ClipLayout


class ClipGroupNorm(nn.GroupNorm):
    """GroupNorm whose statistics are taken over all frames of a clip, the reference included. [B*F, C, h, w]."""

    def __init__(self, stock: nn.GroupNorm, layout: ClipLayout):
        super().__init__(stock.num_groups, stock.num_channels, eps=stock.eps, affine=False)
        self.weight, self.bias, self.affine = stock.weight, stock.bias, stock.affine
        self.layout = layout

    def forward(self, input: Tensor) -> Tensor:
        # In place of transposing the clip there and back: statistics of each frame, joined by the law of total
        # variance. At float32 or better, as every GroupNorm does inside.
        clip = rearrange(input, "(b f) c h w -> b f c (h w)", f=self.layout.num_frames)
        clip = clip.to(torch.promote_types(input.dtype, torch.float32))
        var, mean = torch.var_mean(rearrange(clip, "b f (g c) n -> b f g (c n)", g=self.num_groups), -1, correction=0)
        var, mean = var.mean(1) + mean.var(1, correction=0), mean.mean(1)  # [B, G]

        per_group = self.num_channels // self.num_groups
        scale = (var + self.eps).rsqrt().repeat_interleave(per_group, 1) * self.weight  # [B, C]
        shift = self.bias - mean.repeat_interleave(per_group, 1) * scale
        scale, shift = (rearrange(x, "b c -> b 1 c 1") for x in (scale, shift))
        return torch.addcmul(shift, clip, scale).to(input.dtype).reshape(input.shape)


class MotionModule(nn.Module):
    """AnimateDiff's temporal transformer over frames 1..F-1. Frame 0, the reference, passes unchanged.

    Takes over the parts of the stock module, whose norm pools the frames; here each frame is normalised by itself,
    always in 32 groups. Keeps the stock signature, because the mid block passes `num_frames` by position.
    """

    NORM_GROUPS = 32

    def __init__(self, stock: AnimateDiffTransformer3D):
        super().__init__()
        channels = stock.norm.num_channels
        if channels % self.NORM_GROUPS:
            raise ValueError(f"motion modules need channels divisible by {self.NORM_GROUPS}, got {channels}")
        self.norm = stock.norm
        self.norm.num_groups = self.NORM_GROUPS
        self.proj_in = stock.proj_in
        self.transformer_blocks = stock.transformer_blocks
        self.proj_out = stock.proj_out

    def forward(
        self,
        hidden_states: Tensor,  # [B*F, C, h, w]
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        num_frames: int = 1,
        cross_attention_kwargs: dict | None = None,
    ) -> Tensor:  # [B*F, C, h, w]
        if num_frames == 1:
            return hidden_states
        clip = rearrange(hidden_states, "(b f) c h w -> b f c h w", f=num_frames)
        reference, moving = clip[:, :1], clip[:, 1:]
        batch, frames, _, height, width = moving.shape

        x = self.norm(rearrange(moving, "b f c h w -> (b f) c h w"))
        # Contiguous: with a batch of one the rearrangement is a view, on which `linear` is slow.
        x = self.proj_in(rearrange(x, "(b f) c h w -> (b h w) f c", b=batch, f=frames).contiguous())
        for block in self.transformer_blocks:
            x = block(x)
        x = rearrange(self.proj_out(x), "(b h w) f c -> b f c h w", b=batch, h=height, w=width)

        return rearrange(torch.cat([reference, moving + x], dim=1), "b f c h w -> (b f) c h w")

"""A denoiser that is told where and when a latent lies: what a model trained from scratch needs, and a pretrained one
has."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from diffusers import (
    ModelMixin,  # noqa: F401  diffusers looks for the base class in the module of a component
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.normalization import RMSNorm
from diffusers.models.unets.unet_motion_model import UNetMotionOutput
from einops import rearrange, repeat
from torch import Tensor, nn

from xdyna_model.clip_layout import ClipLayout
from xdyna_model.dynamics_adapter import DynamicsAdapter
from xdyna_model.motion import MotionModule
from xdyna_model.positional_encoding import (
    DRIFTS,
    NUM_POSITION_CHANNELS,
    NUM_TOLD,
    NUM_WAVES,
    drift_waves,
    told_channels,
)
from xdyna_model.unet import XDynaUNet, with_released_defaults

# Of what the input is told, beside the latents. Eight times louder, it was most of what the first norm lets through,
# and a model from scratch learned the later what pictures hold.
INPUT_AMPLITUDE = 0.375
# Of a token's guess that nothing drifts, before training: log of how much likelier it is than any one drift.
STILLNESS = 3.0


@dataclass
class TellingLayout(ClipLayout):
    """A layout that also knows where and when every token lies, in the call of the denoiser that began last."""

    size: tuple[int, int] = (1, 1)
    _told: dict[int, Tensor] = field(default_factory=dict)
    _drifts: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, size: tuple[int, int]) -> None:
        """A call for latents of that size, (height, width). Forgets what was told in the last one."""
        self.size = size
        self._told, self._drifts = {}, {}  # new ones: what is computed anew may still ask for the old

    def told(self, num_tokens: int, device: torch.device) -> Tensor:
        """`told_channels` at the denoiser's level of so many tokens, [F, N, 181] float32."""
        if num_tokens not in self._told:
            height, width = self.size
            while height * width > num_tokens:
                height, width = (height + 1) // 2, (width + 1) // 2
            self._told[num_tokens] = told_channels(self.num_frames, height, width, device)
        return self._told[num_tokens]

    def drifts(self, num_tokens: int, device: torch.device) -> Tensor:
        """`drift_waves` at that level, [F, N, 8, 16] float32."""
        if num_tokens not in self._drifts:
            self._drifts[num_tokens] = drift_waves(self.told(num_tokens, device))
        return self._drifts[num_tokens]


class PositionalAdapter(DynamicsAdapter):
    """A `DynamicsAdapter` whose queries and keys are told where and when they lie, as DETR's are (Carion et al. 2020,
    Section 3.2): a product of `told_channels` is added to each. Values are left alone.

    From places in the input alone a model would have to learn the products of their waves first, and several thousand
    steps have not been enough.
    """

    layout: TellingLayout

    def __init__(self, attn: Attention, layout: TellingLayout):
        super().__init__(attn, layout)
        like = {"dtype": attn.to_q.weight.dtype, "device": attn.to_q.weight.device}
        self.to_q_place = nn.Linear(NUM_TOLD, attn.inner_dim, bias=False, **like)
        self.to_k_place = nn.Linear(NUM_TOLD, attn.inner_dim, bias=False, **like)
        self.to_q_ref_place = nn.Linear(NUM_TOLD, attn.inner_dim, bias=False, **like)

    def _project(self, x: Tensor, layers: list[nn.Linear]) -> Sequence[Tensor]:
        q, k, v, q_ref = super()._project(x, layers)
        told = self.layout.told(x.shape[1], x.device).to(x.dtype)

        def placed(part: Tensor, to_place: nn.Linear) -> Tensor:
            clips = rearrange(part, "(b f) n c -> b f n c", f=self.layout.num_frames)
            return rearrange(clips + to_place(told), "b f n c -> (b f) n c")

        return placed(q, self.to_q_place), placed(k, self.to_k_place), v, placed(q_ref, self.to_q_ref_place)


class DriftingAdapter(PositionalAdapter):
    """A `PositionalAdapter` whose tokens guess how what they show drifts: each weighs `DRIFTS` for each head, and its
    query for the reference is moved from its own place towards those from which that has come, by a product of the
    difference of their waves.

    Heads that looked at one drift each would have to be chosen from afterwards, once all of their contents have been
    added up: a small model has not the channels for that, and several thousand steps have not been enough.

    guesses: of the last call with gradients: logits, [B, F, N, heads, 8] float32. Who takes them sets them to None.
    """

    guesses: Tensor | None = None

    def __init__(self, attn: Attention, layout: TellingLayout):
        super().__init__(attn, layout)
        like = {"dtype": attn.to_q.weight.dtype, "device": attn.to_q.weight.device}
        self.num_heads = attn.heads
        self.to_drift = nn.Linear(attn.query_dim, attn.heads * len(DRIFTS), **like)
        self.to_q_ref_drift = nn.Linear(NUM_WAVES, attn.inner_dim, bias=False, **like)
        with torch.no_grad():
            self.to_drift.weight.zero_()
            self.to_drift.bias.zero_()
            self.to_drift.bias[:: len(DRIFTS)] = STILLNESS

    def _project(self, x: Tensor, layers: list[nn.Linear]) -> Sequence[Tensor]:
        q, k, v, q_ref = super()._project(x, layers)
        guesses = rearrange(self.to_drift(x), "(b f) n (h d) -> b f n h d", f=self.layout.num_frames, h=self.num_heads)
        self.guesses = guesses.float() if torch.is_grad_enabled() else None
        waves = self.layout.drifts(x.shape[1], x.device)
        of_each = self.to_q_ref_drift((waves - waves[:, :, :1]).to(x.dtype)).unflatten(-1, (self.num_heads, -1))
        drift = torch.einsum("bfnhd,fndhc->bfnhc", guesses.float().softmax(-1).to(of_each.dtype), of_each)
        return q, k, v, q_ref + rearrange(drift, "b f n h c -> (b f) n (h c)")


def _bound_scores(module: MotionModule) -> None:
    """Normalises queries and keys of attention over time (Henry et al. 2020), without gains, so that no score is
    beyond the root of a head's size.

    Trained from scratch without it, scores at full size grew to a million: in five of six layers nearly all frames took
    from the first one alone, no gradient reached queries and keys any more, and nothing moved but what the pose moves.
    """
    for part in module.modules():
        if isinstance(part, Attention):
            size = part.inner_dim // part.heads
            part.norm_q, part.norm_k = (RMSNorm(size, eps=1e-6, elementwise_affine=False) for _ in range(2))


class PositionalUNet(XDynaUNet):
    """`XDynaUNet` whose input has, beside the latents, sinusoids of the place and of the moment and a flag on the
    reference, whose self-attention is a `PositionalAdapter`, in the last block a `DriftingAdapter`, and whose attention
    over time normalises queries and keys.

    From scratch, attention does not find "the same place in the reference" without them. Takes the configuration of
    `XDynaUNet`; `in_channels` counts the latents' channels and `NUM_POSITION_CHANNELS` together, or `NUM_TOLD` where
    the input has the waves of places that drift, too. ValueError is raised where it is another number.

    Moments count from the reference: in a window of a long clip, from the window's start, so that what drifts starts
    anew in each.
    """

    layout: TellingLayout
    adapter_type = PositionalAdapter
    layout_type = TellingLayout

    @register_to_config
    @with_released_defaults
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, MotionModule):
                _bound_scores(module)
        for module in list(self.up_blocks[-1].modules()):
            if isinstance(module, Attention) and isinstance(module.processor, PositionalAdapter):
                module.set_processor(DriftingAdapter(module, self.layout))  # pyright: ignore[reportArgumentType]
        self._num_told = self.config["in_channels"] - self.config["out_channels"]
        if self._num_told not in (NUM_POSITION_CHANNELS, NUM_TOLD):
            raise ValueError(
                f"in_channels leaves {self._num_told} channels beside the latents, expected {NUM_POSITION_CHANNELS} or "
                f"{NUM_TOLD}; a model of an earlier version was told something else"
            )

    def forward(self, sample: Tensor, *args, **kwargs) -> UNetMotionOutput | tuple[Tensor]:
        """As `XDynaUNet.forward`; sample: [B, C, F, h, w] with C the channels of the latents alone."""
        batch, _, frames, height, width = sample.shape
        self.layout.num_frames = frames
        self.layout.begin((height, width))
        told = INPUT_AMPLITUDE * self.layout.told(height * width, sample.device)[..., : self._num_told]
        told = repeat(told.to(sample.dtype), "f (h w) c -> b c f h w", b=batch, h=height)
        return super().forward(torch.cat([sample, told], dim=1), *args, **kwargs)

"""The denoiser: Stable Diffusion 1.5 with Dynamics-Adapter, image tokens and motion modules."""

import inspect
from typing import Any, NoReturn, Self, cast

from diffusers import (
    ModelMixin,  # noqa: F401  diffusers looks for the base class in the module of a component
    MotionAdapter,
    UNet2DConditionModel,
    UNetMotionModel,
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, UNetMotionOutput
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xdyna_model.clip_layout import ClipLayout
from xdyna_model.dynamics_adapter import DynamicsAdapter
from xdyna_model.image_tokens import ImageTokenAttention
from xdyna_model.motion import ClipGroupNorm, MotionModule

# Where the released model differs from UNetMotionModel's own defaults. sample_size is (height, width) in latents.
RELEASED = {
    "sample_size": (112, 64),
    "cross_attention_dim": 768,
    "motion_max_seq_length": 24,
    "use_motion_mid_block": False,
}


def with_released_defaults(init):
    """Gives `init` the signature of UNetMotionModel's, so that diffusers can save and restore the configuration."""
    parent = inspect.signature(UNetMotionModel.__init__)
    init.__signature__ = parent.replace(
        parameters=[p.replace(default=RELEASED.get(name, p.default)) for name, p in parent.parameters.items()]
    )
    return init


class XDynaUNet(UNetMotionModel):
    """Takes the configuration of `UNetMotionModel`; the defaults are the released model.

    Frame 0 of every clip is the clean reference. Norms of the ResNet blocks and of the output see the whole clip,
    so all frames, the reference included, depend on each other.

    One call at a time: how many frames a clip has is kept for its parts while it passes, so two threads need two
    denoisers. `torch.compile` makes a program for every number of frames.
    """

    adapter_type = DynamicsAdapter
    layout_type = ClipLayout

    @register_to_config
    @with_released_defaults
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **RELEASED | kwargs)
        self.layout = self.layout_type()
        self._exchange_parts()

    def _exchange_parts(self) -> None:
        for name, module in list(self.named_modules()):
            parent, _, child = name.rpartition(".")
            if isinstance(module, AnimateDiffTransformer3D):
                setattr(self.get_submodule(parent), child, MotionModule(module))
            elif isinstance(module, nn.GroupNorm) and (".resnets." in name or name == "conv_norm_out"):
                setattr(self.get_submodule(parent), child, ClipGroupNorm(module, self.layout))
            elif isinstance(module, Attention) and ".attentions." in name:
                processor = self.adapter_type if child == "attn1" else ImageTokenAttention
                module.set_processor(processor(module, self.layout))  # pyright: ignore[reportArgumentType]

    @classmethod
    def from_unet2d(
        cls, unet: UNet2DConditionModel, motion_adapter: MotionAdapter | None = None, load_weights: bool = True
    ) -> Self:
        """A denoiser with the backbone's configuration.

        Raises ValueError unless `load_weights` is False: a backbone has no weights for the adapters and image tokens,
        and diffusers takes all or none.
        """
        if load_weights:
            raise ValueError("a backbone lacks the adapters' weights: take load_weights=False, then load a state dict")
        return cast(Self, super().from_unet2d(unet, motion_adapter, load_weights=False))

    def reset_adapters(self) -> None:
        """Puts every Dynamics-Adapter back to its start: call it after loading a backbone to train on. The weights for
        image tokens are left as they are.

        Raises ValueError where an adapter has no memory yet, as after `from_pretrained` of a backbone without adapters:
        give it `low_cpu_mem_usage=False`.
        """
        for name, module in self.named_modules():
            if isinstance(module, Attention) and isinstance(module.processor, DynamicsAdapter):
                if module.processor.to_q_ref.weight.is_meta:
                    raise ValueError(f"the adapter of {name} has no memory; load with low_cpu_mem_usage=False")
                module.processor.reset(module)

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint) -> None:
        super()._set_gradient_checkpointing(enable, self.layout.recomputing(gradient_checkpointing_func))

    def set_use_memory_efficient_attention_xformers(self, *_: object, **__: object) -> NoReturn:
        """Raises ValueError: diffusers would put its own attention in the place of the adapters, weights and all."""
        raise ValueError("xformers cannot be turned on or off: the attention of this denoiser is its adapters'")

    def fuse_qkv_projections(self) -> NoReturn:
        """Raises ValueError, for the same reason. `DynamicsAdapter.packed` does what it would."""
        raise ValueError("projections cannot be fused: the attention of this denoiser is its adapters', see `packed`")

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor,
        image_embeds: Tensor,
        down_block_additional_residuals: tuple[Tensor, ...] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNetMotionOutput | tuple[Tensor]:
        """Predicts the noise of a clip.

        Args:
            sample: [B, C, F, h, w] latents, frame 0 the clean reference.
            timestep: one for the whole batch, or [B]; the reference gets the same one.
            encoder_hidden_states: [B, T, E] text tokens.
            image_embeds: [B, 16, E] image tokens.
            down_block_additional_residuals, mid_block_additional_residual: of the ControlNets, [B*F, C, h', w']
                with frames folded into the batch, frame 0 first.

        Returns:
            `.sample` [B, C, F, h, w]; what it says of frame 0 is not meant to be used.

        Raises:
            ValueError: sample is not a clip, or has more frames than the motion modules have positions.
        """
        limit = self.config["motion_max_seq_length"]
        if sample.ndim != 5 or not 1 <= sample.shape[2] <= limit + 1:
            raise ValueError(f"sample is {list(sample.shape)}, expected [B, C, F, h, w] with 1 <= F <= 1 + {limit}")
        self.layout.num_frames = sample.shape[2]
        return super().forward(
            sample,
            timestep,
            (encoder_hidden_states, image_embeds),  # pyright: ignore[reportArgumentType]
            down_block_additional_residuals=down_block_additional_residuals,  # pyright: ignore[reportArgumentType]
            mid_block_additional_residual=mid_block_additional_residual,
            return_dict=return_dict,
        )

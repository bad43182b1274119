"""Negative controls: a part of the model that adds nothing any more, put back afterwards."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from xdyna_model.dynamics_adapter import DynamicsAdapter
from xdyna_model.motion import MotionModule
from xdyna_model.pipeline import XDynaPipeline


@contextmanager
def silenced(modules: Iterable[nn.Module]) -> Iterator[None]:
    """All parameters of the modules are zero inside the block, and what they were after it.

    Raises ValueError where there is nothing to silence: a control that changes nothing proves nothing.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    if not parameters:
        raise ValueError("nothing to silence: the model lacks this part")
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def adapter_off(pipeline: XDynaPipeline) -> AbstractContextManager[None]:
    """No frame takes anything from the reference through the Dynamics-Adapters."""
    return silenced(m.to_out_ref for m in pipeline.unet.modules() if isinstance(m, DynamicsAdapter))


def control_off(pipeline: XDynaPipeline) -> AbstractContextManager[None]:
    """Both ControlNets add zeros."""
    nets = (pipeline.controlnet, pipeline.controlnet_face)
    return silenced(part for net in nets for part in (*net.controlnet_down_blocks, net.controlnet_mid_block))


def motion_off(pipeline: XDynaPipeline) -> AbstractContextManager[None]:
    """The motion modules add nothing: no frame sees the others but through the norms."""
    return silenced(m.proj_out for m in pipeline.unet.modules() if isinstance(m, MotionModule))


CONTROLS: Mapping[str, Callable[[XDynaPipeline], AbstractContextManager[None]]] = {
    "adapter off": adapter_off,
    "control off": control_off,
    "motion modules off": motion_off,
}

"""A model shared out over the processes of a run (FSDP), and whole again: each keeps its part of every weight, gradient
and number of the optimiser, and a block's weights are gathered in float32 while it computes."""

from collections.abc import Mapping
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from xdyna_model.pipeline import XDynaPipeline

from xdyna_train.gathering import gathered
from xdyna_train.trainee import Trainee


def share_out(trainee: Trainee) -> None:
    """Turns the parameters into DTensors, in place. The process group has begun; all processes call it together, with
    the same weights."""
    device = next(trainee.parameters()).device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for net in trainee.children():
        blocks = [*getattr(net, "down_blocks", ()), getattr(net, "mid_block", None), *getattr(net, "up_blocks", ())]
        for module in (*blocks, net):
            if module is not None:
                fully_shard(module, mesh=mesh)
    fully_shard(trainee, mesh=mesh)


def whole(tree: Any, keep: bool = True) -> Any:
    """Tensors, and dicts and lists of them, with every DTensor whole and on the CPU. All processes call it together;
    one that does not keep them is given None in their place."""
    if isinstance(tree, DTensor):
        full = gathered(tree)
        return full.cpu() if keep else None
    if isinstance(tree, Mapping):
        return {name: whole(value, keep) for name, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value, keep) for value in tree]
    return tree


def part_like(value: Any, like: Tensor) -> Any:
    """This process's part of a whole tensor, where `like`, of the same shape, is shared out; otherwise the value. All
    processes call it together, with the same values."""
    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def optimizer_parts(state: dict[str, Any], learning: list[nn.Parameter]) -> dict[str, Any]:
    """As `part_like`, of an optimiser's state: what it holds of each parameter."""
    of_parameters = {
        index: {name: part_like(value, learning[index]) for name, value in held.items()}
        for index, held in state["state"].items()
    }
    return {**state, "state": of_parameters}


def bring_together(pipeline: XDynaPipeline, trainee: Trainee, keep: bool) -> None:
    """Puts whole nets in the place of a pipeline's shared ones. All processes call it together; one that does not keep
    them goes on with its parts."""
    for name, net in trainee.named_children():
        state = whole(net.state_dict(), keep)
        if keep:
            # `fully_shard` has made a class of its own out of FSDPModule and the net's.
            plain_class: Any = next(c for c in type(net).__mro__[1:] if not issubclass(c, FSDPModule))
            plain = cast(nn.Module, plain_class.from_config(net.config))
            plain.load_state_dict(state)
            pipeline.register_modules(**{name: plain.to(pipeline.device).eval().requires_grad_(False)})

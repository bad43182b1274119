"""Whole tensors from the parts that processes hold."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


@torch.no_grad()
def gathered(part: DTensor) -> Tensor:
    """The whole of what is shared out, for every process. All processes call it together.

    As `full_tensor()`, which is not safe on CPUs where tensors are shared out by rows, as FSDP does: it gathers by an
    operation that gloo calls ALLGATHER_COALESCED, and gloo's threads, two a process, note the name of what they have
    finished last in one std::string without a lock (PyTorch 2.11, ProcessGroupGloo::runLoop). A name of more than 15
    characters lies on the heap, which two threads then free twice. The name of the operation here is shorter.
    """
    (placement,) = part.placements
    if not placement.is_shard(0):
        return part.full_tensor()  # a sum over processes, by ALLREDUCE
    group = part.device_mesh.get_group()
    processes = dist.get_world_size(group)
    rows = -(-len(part) // processes)  # of each process; the last ones may have fewer, or none
    local = part.to_local()
    mine = local.new_zeros(rows, *part.shape[1:])
    mine[: len(local)] = local
    everyone = local.new_empty(rows * processes, *part.shape[1:])
    dist.all_gather_into_tensor(everyone, mine, group=group)
    # Of more rows than asked for, a checkpoint would hold them all.
    return everyone if len(everyone) == len(part) else everyone[: len(part)].clone()

"""Gluon kernels on CPU tensors: a stand-in for the operations that the package's use, one program at a time.

Each partition of `warp_specialize` is a thread; mbarriers have their real phases; shared memory starts as NaN (see
gluon_program.py). Layouts are ignored: their errors, and all of speed, only show on a GPU.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon._runtime import GluonJITFunction
from xdyna_kernels import gluon_kernel

sys.path.insert(0, str(Path(__file__).parent))
from gluon_program import TOO_LATE, Barrier, Barriers, Product, Program, Shared


class _Pointer:
    def __init__(self, data: Tensor, offset: Any = 0):
        self.data, self.offset = data, offset
        self.dtype = SimpleNamespace(element_ty=data.dtype)

    def __add__(self, offset: Any) -> "_Pointer":
        return _Pointer(self.data, self.offset + offset)


class _Descriptor:
    def __init__(self, host: Any):
        self.data, self.block_shape, self.layout = host.base, host.block_shape, host.layout
        self.dtype = host.base.dtype
        assert tuple(host.base.shape) == tuple(host.shape)
        assert tuple(host.base.stride()) == tuple(host.strides)
        self.block_type = SimpleNamespace(nbytes=torch.Size(host.block_shape).numel() * self.dtype.itemsize)

    def block(self, corner: list[int]) -> Tensor:
        """Zeros outside of the tensor."""
        found = torch.zeros(self.block_shape, dtype=self.dtype)
        inside = self.data[tuple(slice(int(c), int(c) + n) for c, n in zip(corner, self.block_shape, strict=True))]
        found[tuple(slice(n) for n in inside.shape)] = inside
        return found


class _Operations:
    """Stands in for the modules gl, mbarrier and tma and the functions of Hopper, within one program."""

    int64, float32, float16, bfloat16 = torch.int64, torch.float32, torch.float16, torch.bfloat16
    static_range = range
    exp2, log2 = staticmethod(torch.exp2), staticmethod(torch.log2)
    constexpr = object

    def __init__(self, program_id: int, programs: int):
        self.id, self.programs, self.program = program_id, programs, Program()
        self.warp_specialize = self.program.specialize

    def program_id(self, axis: int) -> Tensor:
        assert axis == 0
        return torch.tensor(self.id)

    def num_programs(self, axis: int) -> int:
        assert axis == 0
        return self.programs

    def assume(self, condition: Any) -> None:
        assert condition

    def cast(self, x: Any, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(x).to(dtype)

    def _ignored(self, *args, **kwargs) -> None:
        """A layout, or a fence."""

    NVMMADistributedLayout = DotOperandLayout = SliceLayout = MBarrierLayout = fence_async_shared = _ignored

    def convert_layout(self, x, layout):
        return x

    def full(self, shape, value, dtype, layout):
        return torch.full(shape, value, dtype=dtype)

    def zeros(self, shape, dtype, layout):
        return torch.zeros(shape, dtype=dtype)

    def arange(self, start, end, layout):
        return torch.arange(start, end)

    def expand_dims(self, x, axis):
        return x.unsqueeze(axis)

    def where(self, condition, a, b):
        return torch.where(condition, a, b) if isinstance(a, Tensor) else (a if condition else b)

    def maximum(self, a, b):
        return torch.maximum(a, b)

    def max(self, x, axis):
        return x.amax(axis)

    def sum(self, x, axis):
        return x.sum(axis)

    def load(self, pointer, mask, other):
        found = torch.full(mask.shape, other, dtype=pointer.data.dtype)
        found[mask] = pointer.data.view(-1)[pointer.offset[mask]]
        return found

    def store(self, pointer, values, mask):
        at = pointer.offset.expand(values.shape)[mask.expand(values.shape)]
        assert values.dtype == pointer.data.dtype
        pointer.data.view(-1)[at] = values[mask.expand(values.shape)]

    def allocate_shared_memory(self, dtype, shape, layout):
        if dtype != torch.int64:
            return Shared(self.program, torch.full(shape, float("nan"), dtype=dtype))
        return Barriers(self.program, shape[0]) if len(shape) == 2 else Barrier(self.program)

    def init(self, barrier, count):
        barrier.init(count)

    def arrive(self, barrier):
        barrier.arrive()

    def expect(self, barrier, bytes):
        barrier.arrive(bytes)

    def wait(self, barrier, phase, pred=True):
        if pred:
            barrier.wait(int(phase))

    def async_copy_global_to_shared(self, descriptor, corner, barrier, tile):
        with self.program.changed:
            earlier = tile.uses.reads | ({tile.uses.copy} - {None})
            self.program.fail_if(not earlier <= self.program.mine(), TOO_LATE)
            tile.data.copy_(descriptor.block(corner))
            tile.uses.copy, tile.uses.reads = self.program.event(), set()
            self.program.copies.add(tile.uses.copy)
            barrier.copied(descriptor.block_type.nbytes, tile.uses.copy)

    def warpgroup_mma(self, a, b, acc, *, use_acc=True, is_async=False):
        assert is_async
        with self.program.changed:
            reads = {x.read() for x in (a, b) if isinstance(x, Shared)}
        a, b = (x.data if isinstance(x, Shared) else x for x in (a, b))
        assert a.dtype == b.dtype
        product = a.float() @ b.float()
        if use_acc:
            product += acc.value if isinstance(acc, Product) else acc
        self.program.products().append(Product(product, reads))
        return self.program.products()[-1]

    def warpgroup_mma_wait(self, outstanding=0, *, deps):
        with self.program.changed:
            products = self.program.products()
            while len(products) > outstanding:
                over = products.pop(0)
                over.over = True
                self.program.mine().update(over.reads)
        values = tuple(x.value if x.over else x for x in deps)
        return values[0] if len(values) == 1 else values


class OnCPU:
    """Takes the place of a kernel in its module, or in an edited copy of that."""

    def __init__(self, module: Any, kernel: str = "attend_kernel"):
        self.module, self.kernel = module, kernel
        self.functions = {name: f.fn for name, f in vars(module).items() if isinstance(f, GluonJITFunction)}

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args, num_warps: int, **constants) -> None:
            for program_id in range(*grid):
                self._run(program_id, grid[0], args, constants)

        return launch

    def _run(self, program_id: int, programs: int, args: tuple, constants: dict[str, Any]) -> None:
        operations = _Operations(program_id, programs)
        world = vars(self.module) | dict.fromkeys(("gl", "mbarrier", "tma"), operations)
        for name in ("warpgroup_mma", "warpgroup_mma_wait", "fence_async_shared"):
            world[name] = getattr(operations, name)
        for name, function in self.functions.items():
            world[name] = FunctionType(function.__code__, world, name, function.__defaults__)
        world[self.kernel](*(self._argument(x) for x in args), **constants)

    def _argument(self, x: Any) -> Any:
        return _Descriptor(x) if hasattr(x, "block_shape") else _Pointer(x) if isinstance(x, Tensor) else x


def edited_kernel(folder: Path, edits: dict[str, str], module: ModuleType = gluon_kernel) -> ModuleType:
    """The module with pieces of its text replaced, each of which must be there once."""
    source = Path(str(module.__file__)).read_text()
    for piece, other in edits.items():
        assert source.count(piece) == 1, piece
        source = source.replace(piece, other)
    path = folder / "edited.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("xdyna_kernels.edited", path)
    assert spec is not None
    assert spec.loader is not None
    edited = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(edited)
    return edited

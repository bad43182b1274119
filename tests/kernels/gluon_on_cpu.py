"""Gluon kernels on CPU tensors: a stand-in for the operations that the package's use, one program at a time.

Each partition of `warp_specialize` is a thread; mbarriers have their real phases; shared memory starts as NaN. What a
thread has seen happen is followed through the barriers. So whether a copy could still be under way when its tile is
read, or a read when its tile is overwritten, does not depend on how the threads happened to run, and when every thread
waits, that is a deadlock at once. Layouts are ignored: their errors, and all of speed, only show on a GPU.
"""

import importlib.util
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon._runtime import GluonJITFunction
from xdyna_kernels import gluon_kernel

TOO_EARLY = "a tile is read whose copy was not waited for"
TOO_LATE = "a tile is overwritten that may still be in use"
UNFINISHED = "a product is used that was not waited for"
STUCK = "deadlock"
ANY = "."  # of these and others, as a pattern: which comes first may depend on the threads


class KernelError(AssertionError):
    """A program that would hang, race or read what is not there yet."""


class _Program:
    """One program's threads: a lock, and for each thread the events (copies and reads that are over) it has seen."""

    def __init__(self):
        self.changed = threading.Condition()
        self.running, self.failure = 0, None
        self.waiting: list[Callable[[], bool]] = []
        self.seen: dict[int, set[int]] = {threading.get_ident(): set()}
        self.pending: dict[int, list[_Product]] = {threading.get_ident(): []}
        self.events = 0
        self.copies: set[int] = set()

    def event(self) -> int:
        self.events += 1
        return self.events

    def mine(self) -> set[int]:
        return self.seen[threading.get_ident()]

    def products(self) -> "list[_Product]":
        return self.pending[threading.get_ident()]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Blocks until `condition` holds; called with the lock held, as is all that may make it hold."""
        self.waiting.append(condition)
        self.fail_if(self.stuck(), f"{STUCK}: every partition waits")
        self.changed.wait_for(lambda: condition() or self.failure is not None, timeout=60)
        self.waiting.remove(condition)
        self.fail_if(not condition(), f"{STUCK}: waited for a minute")

    def stuck(self) -> bool:
        return 0 < self.running == len(self.waiting) and not any(condition() for condition in self.waiting)

    def fail_if(self, wrong: bool, message: str) -> None:
        if wrong and self.failure is None:
            self.failure = KernelError(message)
            self.changed.notify_all()
        if self.failure is not None:
            raise self.failure

    def specialize(self, functions_and_args, warps, registers) -> None:
        assert len(warps) == len(registers) == len(functions_and_args) - 1
        before = set(self.mine())
        threads = [threading.Thread(target=self._partition, args=(*item, before)) for item in functions_and_args]
        self.running = len(threads)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failure is not None:
            raise self.failure
        self.fail_if(not self.copies <= set().union(*self.seen.values()), "a copy is still under way at the end")

    def _partition(self, function, args, seen) -> None:
        try:
            with self.changed:
                self.seen[threading.get_ident()] = set(seen)
                self.pending[threading.get_ident()] = []
            with torch.no_grad():  # a setting of each thread
                function(*args)
            with self.changed:
                self.fail_if(bool(self.products()), "a matrix product is never waited for")
        except BaseException as error:
            self.failure = self.failure or error
        with self.changed:
            self.running -= 1
            if self.stuck():
                self.failure = self.failure or KernelError(f"{STUCK}: every partition waits")
            self.changed.notify_all()


class _Barrier:
    def __init__(self, program: _Program):
        self.program, self.count = program, 0

    def init(self, count: int) -> None:
        self.count = self.missing = count
        self.bytes = 0
        self.arriving: set[int] = set()  # events that this phase's arrivals have seen
        self.ends: list[tuple[int, set[int]]] = []  # of each phase that is over: an event, and what had been seen by it

    def arrive(self, bytes: int = 0) -> None:
        with self.program.changed:
            self.missing -= 1
            self.bytes += bytes
            self.program.fail_if(self.missing < 0, "more arrivals at a barrier than it counts")
            self.arriving |= self.program.mine()
            self._finish()

    def copied(self, bytes: int, event: int) -> None:
        self.bytes -= bytes
        self.arriving.add(event)
        self._finish()

    def _finish(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.ends.append((self.program.event(), self.arriving))
            self.missing, self.arriving = self.count, set()
            self.program.changed.notify_all()

    def wait(self, parity: int) -> None:
        """The parity is all that a barrier is told: which phase is meant follows from how many ends of phases the
        thread has seen, here or through others. Of two possible phases, one it knows to be over."""
        with self.program.changed:
            seen = self.program.mine()
            phase = sum(event in seen for event, _ in self.ends)
            if parity == phase & 1:
                self.program.wait_for(lambda: len(self.ends) > phase)
                self.program.fail_if(len(self.ends) > phase + 1, "a barrier is two phases ahead of who waits for it")
                event, before = self.ends[phase]
                seen.update(before, {event})


class _Shared:
    """A tensor in shared memory, or a view of one. `uses` is shared by all views of one tile."""

    def __init__(self, program: _Program, data: Tensor, uses: SimpleNamespace | None = None):
        self.program, self.data, self.dtype, self.shape = program, data, data.dtype, data.shape
        self.uses = uses or SimpleNamespace(copy=None, reads=set())
        self._tiles: dict[int, _Shared] = {}

    def index(self, i: int) -> "_Shared":
        return self._tiles.setdefault(int(i), _Shared(self.program, self.data[int(i)]))

    def slice(self, start: int, length: int, dim: int = 0) -> "_Shared":
        return _Shared(self.program, self.data.narrow(dim, start, length), self.uses)

    def reshape(self, shape: list[int]) -> "_Shared":
        return _Shared(self.program, self.data.view(shape), self.uses)

    def permute(self, order: tuple[int, ...]) -> "_Shared":
        return _Shared(self.program, self.data.permute(order), self.uses)

    def read(self) -> int:
        """The event of a read that begins; called with the lock held."""
        copied = self.uses.copy in self.program.mine()
        self.program.fail_if(not copied, TOO_EARLY)
        event = self.program.event()
        self.uses.reads.add(event)
        return event

    def load(self, layout: None) -> Tensor:
        with self.program.changed:
            self.program.mine().add(self.read())  # over when it returns
            return self.data.clone()


class _Barriers:
    def __init__(self, program: _Program, count: int):
        self.barriers = [_Barrier(program) for _ in range(count)]

    def index(self, i: int) -> _Barrier:
        return self.barriers[int(i)]


class _Product:
    """A matrix product that was issued: others may be added to it, but until it is over it may not be used."""

    def __init__(self, value: Tensor, reads: set[int]):
        self.value, self.reads, self.over = value, reads, False

    def _used(self, *_: object, **__: object) -> Any:
        raise KernelError(UNFINISHED)

    __getattr__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __torch_function__ = _used


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
        self.id, self.programs, self.program = program_id, programs, _Program()
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
            return _Shared(self.program, torch.full(shape, float("nan"), dtype=dtype))
        return _Barriers(self.program, shape[0]) if len(shape) == 2 else _Barrier(self.program)

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
            reads = {x.read() for x in (a, b) if isinstance(x, _Shared)}
        a, b = (x.data if isinstance(x, _Shared) else x for x in (a, b))
        assert a.dtype == b.dtype
        product = a.float() @ b.float()
        if use_acc:
            product += acc.value if isinstance(acc, _Product) else acc
        self.program.products().append(_Product(product, reads))
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

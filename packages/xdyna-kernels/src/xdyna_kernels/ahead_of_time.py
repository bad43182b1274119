"""What a compiled kernel costs, found without a GPU: compile for a chip, then read the machine code.

A kernel that spills registers or leaves the tensor cores idle runs slowly and says nothing; one that needs more shared
memory than its chip has compiles and then cannot launch. So the machine code of every tile is held to limits.
"""

import ast
import hashlib
import json
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import tiles, triton_backward_kernels, triton_forward, triton_projection
from .triton_backward import delta_constants
from .triton_backward_kernels import delta_kernel, keys_kernel, queries_kernel
from .triton_forward import attend_constants, attend_kernel
from .triton_projection import project_constants, project_kernel

KERNELS = {"attend": attend_kernel, "project": project_kernel}
KERNELS |= {"delta": delta_kernel, "queries": queries_kernel, "keys": keys_kernel}  # of the backward
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}  # bytes that one program may have
TENSOR_CORE = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC[A-Z]*MMA"}
REGISTER_SLACK = 8  # that a kernel may take above its recorded figure before it counts as a regression
POINTERS = {"half": "*bf16", "tf32": "*fp32", "ieee": "*fp32"}  # float16 was seen to need no more than bfloat16
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Case:
    """One kernel at one tile for one chip, with one setting of its compile-time arguments."""

    chip: str
    arithmetic: str
    kernel: str  # of KERNELS
    size: str
    constants: dict[str, Any]
    tile: tiles.Tile

    @property
    def name(self) -> str:
        *sides, warps, stages = self.tile
        tile = "x".join(map(str, sides)) + f" {warps} warps {stages} stages"
        return f"{self.chip} {self.arithmetic} {self.kernel} {self.size}, {tile}"


@dataclass(frozen=True)
class Figures:
    registers: int  # per thread
    spills: int  # LDL and STL instructions
    stack: int  # bytes per thread
    shared: int  # bytes per program
    tensor_core: int  # matrix instructions


def attention_case(chip: str, arithmetic: str, D: int, even: bool, tile: tiles.Attention | None = None) -> Case:
    """`attend_kernel` at the table's tile, or at another; `even` as the kernel's EVEN."""
    tile = tile or tiles.attention_tile(chip, arithmetic, D)
    constants = attend_constants(tile, arithmetic, D, even)
    return Case(chip, arithmetic, "attend", f"D={D} {'even' if even else 'tails'}", constants, tile)


def projection_case(chip: str, arithmetic: str, C: int, even: bool, tile: tiles.Projection | None = None) -> Case:
    """`project_kernel` at the table's tile, or at another; `even` as the kernel's EVEN."""
    tile = tile or tiles.projection_tile(chip, arithmetic, C)
    constants = project_constants(tile, arithmetic, C, even)
    return Case(chip, arithmetic, "project", f"C={C} {'even' if even else 'tails'}", constants, tile)


def backward_case(
    chip: str, arithmetic: str, kernel: str, D: int, even: bool, tile: tiles.Attention | None = None
) -> Case:
    """The kernel "queries" or "keys" at the table's tile, or at another; `even` as the kernel's EVEN."""
    table = {"queries": tiles.queries_tile, "keys": tiles.keys_tile}[kernel]
    tile = tile or table(chip, arithmetic, D)
    constants = attend_constants(tile, arithmetic, D, even)
    return Case(chip, arithmetic, kernel, f"D={D} {'even' if even else 'tails'}", constants, tile)


def delta_case(chip: str, arithmetic: str, D: int) -> Case:
    return Case(chip, arithmetic, "delta", f"D={D}", delta_constants(D), tiles.DELTA)


def table_cases() -> Iterator[Case]:
    """Every tile of the table: at the model's sizes, with tails, and at the largest head that it serves."""
    for (chip, arithmetic), limits in tiles.ATTENTION.items():
        for D in sorted({40, 80, 160, *limits}):
            for even in (True, False):
                yield attention_case(chip, arithmetic, D, even)
        for C in (320, 640, 1280):
            yield projection_case(chip, arithmetic, C, even=True)
        yield projection_case(chip, arithmetic, 72, even=False)
    for (chip, arithmetic), limits in tiles.BACKWARD_KEYS.items():
        yield delta_case(chip, arithmetic, tiles.MAX_HEAD_DIM)
        for kernel in ("queries", "keys"):
            for D in sorted({40, 80, 160, *limits}):
                for even in (True, False):
                    yield backward_case(chip, arithmetic, kernel, D, even)


def compile_cases(cases: Iterable[Case]) -> list[Figures]:
    """Figures of each case, compiled in processes of their own; about a second each, less from Triton's cache."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(compile_case, cases))


def compile_case(case: Case) -> Figures:
    """Figures of one case, compiled in this process. A launch of the same then finds it in Triton's cache on disk."""
    kernel = KERNELS[case.kernel]
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in case.constants:
            signature[name] = "constexpr"
            if isinstance(case.constants[name], str):
                attributes[(position,)] = []  # says nothing, but a launch has it, and it counts in the cache's key
        elif name in kernel.do_not_specialize:
            signature[name] = "i32"
        elif name.endswith("scale"):
            signature[name] = "fp32"
        else:
            signature[name] = "*fp32" if name in ("lse", "delta") else POINTERS[case.arithmetic]
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, case.constants, attributes)
    target = GPUTarget("cuda", int(case.chip.removeprefix("sm_")), 32)
    options = {"num_warps": case.tile.warps, "num_stages": case.tile.stages}
    compiled = triton.compile(source, target=target, options=options)
    return _read(compiled.asm["cubin"], compiled.metadata.shared, case.chip)


def _read(cubin: bytes, shared: int, chip: str) -> Figures:
    usage, code = disassemble(cubin)
    return Figures(
        registers=int(re.findall(r"REG:(\d+)", usage)[0]),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        stack=int(re.findall(r"STACK:(\d+)", usage)[0]),
        shared=shared,
        tensor_core=len(re.findall(rf"\b{TENSOR_CORE[chip]}\b", code)),
    )


def disassemble(cubin: bytes) -> tuple[str, str]:
    """Resource usage and machine code, as text."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _tool("cuobjdump", "--dump-resource-usage", file.name), _tool("nvdisasm", "-c", file.name)


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout


def faults(case: Case, found: Figures, recorded: Figures | None) -> list[str]:
    """What is wrong with a compiled kernel, one line each; empty if it may be used."""
    limit = SHARED_LIMIT[case.chip]
    wrong = []
    if found.spills or found.stack:
        wrong.append(f"spills: {found.spills} LDL/STL, {found.stack} bytes of stack")
    if found.shared > limit:
        wrong.append(f"shared memory: {found.shared} bytes, {case.chip} has {limit}")
    if case.arithmetic != "ieee" and case.kernel != "delta" and not found.tensor_core:
        wrong.append(f"tensor cores: no {TENSOR_CORE[case.chip]}")
    if recorded is None:
        wrong.append("not recorded: run bench/compile_report.py --update")
        return wrong
    if found.registers > recorded.registers + REGISTER_SLACK:
        wrong.append(f"registers: {found.registers}, recorded {recorded.registers}")
    if found.tensor_core != recorded.tensor_core:  # a product made twice, or beside the tensor cores
        wrong.append(f"tensor cores: {found.tensor_core} instructions, recorded {recorded.tensor_core}")
    return wrong


def digest() -> str:
    """Of what the table's machine code is made of: Triton's version, the kernels without their comments and where they
    stand, and all that they are compiled for. Where it is the recorded one, the recorded figures are those of today."""
    made_of = [triton.__version__, str(POINTERS)]
    for module in (triton_forward, triton_projection, triton_backward_kernels):
        functions = {name: value for name, value in vars(module).items() if isinstance(value, triton.JITFunction)}
        for name, function in sorted(functions.items()):
            made_of.append(f"{name} {function.noinline} {sorted(function.do_not_specialize)}")
            made_of.append(ast.unparse(function.parse()))
    made_of += [f"{case.name} {sorted(case.constants.items())}" for case in table_cases()]
    return hashlib.sha256("\n".join(made_of).encode()).hexdigest()


def read_digest(path: Path) -> str:
    """The recorded `digest`."""
    return json.loads(path.read_text())["digest"]


def read_golden(path: Path) -> dict[str, Figures]:
    """Recorded figures by case name."""
    return {name: Figures(**row) for name, row in json.loads(path.read_text())["kernels"].items()}


def write_golden(path: Path, figures: dict[str, Figures]) -> None:
    """One line per kernel, so that a changed tile reads as one changed line."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(asdict(found))}" for name, found in figures.items())
    path.write_text(f'{{"triton": "{triton.__version__}", "digest": "{digest()}", "kernels": {{\n{rows}\n}}}}\n')

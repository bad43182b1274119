"""What the Gluon kernels compile to for sm_90, found without a GPU, and what they must be.

Their speed hangs on an order that the compiler is free to change: a product must still be under way while the
exponentials run. So besides spills and shared memory, the loop over keys, or queries, is held to its matrix
instructions and waits.
"""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from .ahead_of_time import SHARED_LIMIT, disassemble
from .gluon_backward import ROW_LAYOUT, row_block
from .gluon_forward import LAYOUT, block, part_layout, tile_constants
from .gluon_kernel import attend_kernel
from .gluon_keys_kernel import keys_kernel
from .gluon_projection import W_LAYOUT, X_LAYOUT, blocks, project_constants
from .gluon_projection_kernel import project_kernel
from .gluon_queries_kernel import queries_kernel
from .gluon_tiles import KEYS, PROJECTION, QUERIES, TILES, Projection, Tile

KERNELS = {"attend": attend_kernel, "keys": keys_kernel, "queries": queries_kernel, "project": project_kernel}
POINTERS = {
    "attend": {"both": "*{}", "lse": "*fp32"},
    "keys": dict.fromkeys(("dk", "dv", "dkr", "dvr"), "*{}"),
    "queries": {"dq": "*{}", "lse": "*fp32", "delta": "*fp32"},
    "project": dict.fromkeys(("b_out", "b_ref", "residual", "out"), "*{}"),
}
TABLES: dict[str, dict[int, Any]] = {"attend": TILES, "keys": KEYS, "queries": QUERIES, "project": PROJECTION}
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
# The order of the loops that run fast. Attention waits for the values' product only after the softmax; of the keys, the
# exponentials run under the derivatives of the weights, and those of the scores are made under the values' sums; of the
# queries, most run under both the weights' derivatives and the last sums.
PIPELINED = {
    "attend": "QK barrier PV wait(2) exp barrier wait(0)",
    "keys": "barrier QK wait(2) exp PV wait(2) PV wait(0)",
    "queries": "QK PV wait(4) exp barrier wait(0) exp",
}
INSTRUCTION_SLACK = 8  # that the loop may grow above its recorded length


@dataclass(frozen=True)
class Figures:
    spills: int  # LDL and STL instructions
    stack: int  # bytes per thread
    shared: int  # bytes per program
    instructions: int  # in the loop, each of which takes an issue slot of every warp
    products: dict[str, int]  # matrix instructions of the loop, by shape
    unordered: int  # accesses to what tells warps what to run, see `unordered`
    order: str  # of the loop's matrix instructions ("QK" of scores, "PV" of sums), exponentials and waits; repeats once


def compile_kernel(
    kernel: str, size: int, dtype: torch.dtype = torch.bfloat16, tile: Tile | Projection | None = None
) -> list[Figures]:
    """Figures of one of KERNELS for heads of `size` channels, or output channels of the projection, at the table's tile
    or at another: one for the loop of each warpgroup. About two seconds. A launch of the same then finds it in Triton's
    cache on disk."""
    tile = tile or TABLES[kernel][size]
    assert tile is not None
    constants = project_constants(tile) if isinstance(tile, Projection) else tile_constants(size, tile)
    function, signature, attributes = KERNELS[kernel], {}, {}
    for position, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in function.do_not_specialize:
            signature[name] = "i32"
        elif name.endswith("scale"):
            signature[name] = "fp32"
        elif pointer := POINTERS[kernel].get(name):
            signature[name] = pointer.format(NAMES[dtype])
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            described = _of_projection(name, tile) if isinstance(tile, Projection) else _of_heads(name, constants, tile)
            element, shape, layout = described
            signature[name] = f"tensordesc<{element.format(NAMES[dtype])}{shape},{layout!r}>"  # as Triton at a launch
    source = GluonASTSource(function, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    usage, code = disassemble(compiled.asm["cubin"])
    return [
        Figures(
            spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
            stack=int(re.findall(r"STACK:(\d+)", usage)[0]),
            shared=compiled.metadata.shared,
            instructions=len(loop),
            products=dict(Counter(re.findall(r"HGMMA\.(\w+)", "\n".join(loop)))),
            unordered=unordered(compiled.asm["ptx"]),
            order=_order(loop),
        )
        for loop in _loops(code)
    ]


def name(kernel: str, size: int) -> str:
    """What a row of `TABLES` is called in reports."""
    return f"sm_90 gluon {kernel} {'C' if kernel == 'project' else 'D'}={size}"


def pipelined(kernel: str, tile: Tile | Projection) -> str:
    """The order that the loop must have: of the projection, a stage is left while the next one's products, of one part
    of the columns or of two, are under way."""
    if isinstance(tile, Projection):
        return f"barrier QK wait({2 if project_constants(tile)['C1'] else 1})"
    return PIPELINED[kernel]


def _of_heads(name: str, constants: dict[str, int], tile: Tile) -> tuple[str, list[int], Any]:
    """Element, block and layout of what a descriptor brings to the kernels of attention and its derivatives."""
    if name in ("lse", "delta"):
        return "fp32", row_block(tile.queries), ROW_LAYOUT
    rows = tile.queries if name.startswith(("q", "d_both")) else tile.keys
    if name.endswith(("0", "1")):  # a part of the channels
        width = constants["D" + name[-1]]
        return "{}", block(rows, width), part_layout(width)
    return "{}", block(rows, constants["D"]), LAYOUT


def _of_projection(name: str, tile: Projection) -> tuple[str, list[int], Any]:
    """The same of the projection's."""
    return "{}", blocks(tile)[name.replace("r", "")], X_LAYOUT if name == "x" else W_LAYOUT


def _loops(code: str) -> list[list[str]]:
    """The instructions of each innermost loop with matrix instructions in it."""
    instructions, labels, found = [], {}, []
    for line in code.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(match[1])
            target = re.search(r"BRA.*(\.L_x_\d+)", match[1])
            if target and target[1] in labels:
                found.append((labels[target[1]], len(instructions)))
    found = [(a, b) for a, b in found if any("HGMMA" in x for x in instructions[a:b])]
    # Code that is out of line jumps back into the middle of a loop, which is no loop.
    inner = [(a, b) for a, b in found if not any((a <= c and d < b) or (c < a < d < b) for c, d in found)]
    return [[x for x in instructions[a:b] if x != "NOP"] for a, b in inner]


def _order(loop: list[str]) -> str:
    words = []
    for line in loop:
        if "HGMMA" in line:
            word = "PV" if ".tnspB" in line else "QK"  # what is summed over lies transposed
        elif "MUFU.EX2" in line:
            word = "exp"
        elif "TRYWAIT" in line:
            word = "barrier"
        elif wait := re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", line):
            word = f"wait({wait[1]})"
        else:
            continue
        if words[-1:] != [word]:
            words.append(word)
    return " ".join(words)


def unordered(ptx: str) -> int:
    """How many accesses to what `warp_specialize` writes for the other warps, bytes that tell each what to run and its
    arguments, have no barrier of the whole program between them: behind the writes, before the reads of the bytes."""
    # Writes are to addresses known when it compiles; nothing else reads single bytes of shared memory.
    write, read, barrier = r"st\.shared\.\S+\s+\[global_smem\+\d+\]", r"ld\.shared\.b8\b", r"barrier\.sync\s+1;"
    block_end = r"^\$\w+:|\bbra\b|\bbrx\b|\bret;"
    lines = [line.strip() for line in ptx.splitlines()]

    def meets_barrier(path: list[str]) -> bool:
        first = next((line for line in path if re.search(f"{barrier}|{block_end}|{read}", line)), "")
        return bool(re.search(barrier, first))

    written = [meets_barrier(lines[k + 1 :]) for k, line in enumerate(lines) if re.search(write, line)]
    told = [meets_barrier(lines[:k][::-1]) for k, line in enumerate(lines) if re.search(read, line)]
    return [*written, *told].count(False)


def faults(found: Figures, recorded: Figures) -> list[str]:
    """What is wrong with the compiled kernel, one line each; empty if it may be used."""
    wrong = []
    if found.spills or found.stack:
        wrong.append(f"spills: {found.spills} LDL/STL, {found.stack} bytes of stack")
    if found.shared > SHARED_LIMIT["sm_90"]:
        wrong.append(f"shared memory: {found.shared} bytes, sm_90 has {SHARED_LIMIT['sm_90']}")
    if found.products != recorded.products:
        wrong.append(f"matrix instructions: {found.products}, recorded {recorded.products}")
    if found.unordered:
        wrong.append(f"warps are told what to run without a barrier: {found.unordered}")
    if found.order != recorded.order:
        wrong.append(f"order: {found.order}, recorded {recorded.order}")
    if found.instructions > recorded.instructions + INSTRUCTION_SLACK:
        wrong.append(f"instructions: {found.instructions}, recorded {recorded.instructions}")
    return wrong


def read_golden(path: Path) -> dict[str, dict[int, Figures]]:
    """Recorded figures by kernel and D, or output channels; of the longest of the warpgroups' loops."""
    recorded = json.loads(path.read_text())
    return {kernel: {int(D): Figures(**row) for D, row in recorded[kernel].items()} for kernel in KERNELS}


def write_golden(path: Path, figures: dict[str, dict[int, Figures]]) -> None:
    """Writes one line for each tile, so that a changed tile reads as one changed line."""
    sections = [f'"triton": "{triton.__version__}"']
    for kernel, of_sizes in figures.items():
        rows = ",\n".join(f'  "{size}": {json.dumps(asdict(found))}' for size, found in of_sizes.items())
        sections.append(f'"{kernel}": {{\n{rows}\n}}')
    path.write_text(f"{{{', '.join(sections)}}}\n")

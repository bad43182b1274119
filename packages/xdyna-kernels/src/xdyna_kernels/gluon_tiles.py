"""Tile sizes of the Gluon kernels, and what they serve. Timed on an H100, each kernel alone, or by `bench/attn.py
--tune` where `tiles.TIMED` says so; what each compiles to is in tests/kernels/golden."""

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    warpgroups: int  # that compute; one more warp copies
    queries: int  # rows of one warpgroup; in KEYS, of one step
    keys: int  # rows of one step; in KEYS, of one warpgroup
    stages: int  # steps in shared memory
    persistent: bool = False  # in TILES, whether a program for each multiprocessor takes tiles in turn, or one for each


class Projection(NamedTuple):
    """A tile is one warpgroup's; a program has two, and one more warp that copies."""

    rows: int  # 64 or 128
    columns: int  # output channels: a power of two, or the sum of two
    depth: int  # channels of one step: 64, which are the 128 bytes of a row in shared memory
    stages: int  # steps in shared memory

    @property
    def warpgroups(self) -> int:
        return 2


DTYPES = (torch.float16, torch.bfloat16)
# By D. Medians of attention alone in ms, in turns, on an H100 in bfloat16 at the model's sizes: persistent 12.10 at
# D = 40, 1.182 at D = 80 and .198 at D = 160; a program for each tile 12.92, 1.334 and .228. Tried, and slower or
# within 3 % of these: other sizes, exponentials on the FMA pipe, sums by the matrix unit or reduced once at the end,
# and sums scaled only where a maximum has grown by more than 2^8.
TILES = {
    40: Tile(3, 64, 128, 4, persistent=True),
    80: Tile(2, 64, 128, 2, persistent=True),
    160: Tile(2, 64, 128, 2, persistent=True),
}
# Of the backward, by D: the kernel that holds blocks of keys and walks over the queries. Alone on an H100, in bfloat16
# at the model's sizes, it took 19.29 ms where Triton's took 31.31 (D = 40), and 2.428 for 2.824 (D = 80, with three
# stages; `--tune` found two 1.4 % faster). D = 160 is left to Triton's: .667 for .677.
KEYS = {
    40: Tile(3, 64, 64, 4),
    80: Tile(2, 64, 64, 2),
}
# And the kernel that holds blocks of queries and walks over the keys, of which it keeps one tile more than there are
# stages; of the tiles that compile without spills and to the right order, `--tune` found these the fastest.
QUERIES = {
    40: Tile(3, 64, 64, 4),
    80: Tile(3, 64, 64, 3),
}
# Of a thread that computes, and of one that copies, by the number of warpgroups: together nearly all
# that a multiprocessor has.
REGISTERS = {2: (240, 24), 3: (160, 32)}
# Of the projection, by the most output channels that a tile serves, the last one all beyond. Never timed: of those that
# compile without spills, what fills the last round of tiles on 132 multiprocessors at the model's sizes (90 to 99 %).
PROJECTION = {
    320: Projection(128, 160, 64, 5),
    640: Projection(128, 128, 64, 6),
    1280: Projection(128, 128, 64, 6),
}

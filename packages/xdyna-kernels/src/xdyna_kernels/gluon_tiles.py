"""Tile sizes of the Gluon kernel, and what it serves. Timed on an H100, attention alone, or by `bench/attn.py --tune`
where `tiles.TIMED` says so; what each compiles to is in tests/kernels/golden."""

from typing import NamedTuple

import torch


class Tile(NamedTuple):
    warpgroups: int  # that compute; one more warp copies
    queries: int  # rows of one warpgroup
    keys: int  # rows of one step
    stages: int  # steps in shared memory


DTYPES = (torch.float16, torch.bfloat16)
# By D. Three warpgroups take 16 % less time than two at D = 40 and 4 % more at D = 80 (attention alone, H100).
TILES = {
    40: Tile(3, 64, 128, 3),
    80: Tile(2, 128, 64, 3),
    160: Tile(2, 64, 64, 2),
}
# Of a thread that computes, and of one that copies, by the number of warpgroups: together nearly all
# that a multiprocessor has.
REGISTERS = {2: (240, 24), 3: (160, 32)}

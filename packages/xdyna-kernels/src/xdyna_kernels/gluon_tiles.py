"""Tile sizes of the Gluon kernel, and what it serves. Chosen by compiling ahead of time (tests/kernels/golden)."""

import torch

DTYPES = (torch.float16, torch.bfloat16)
QUERIES = 64  # rows of one warpgroup; a program has two
KEYS_AND_STAGES = {40: (128, 4), 80: (128, 2), 160: (64, 2)}  # by D; keys of one step, steps in shared memory

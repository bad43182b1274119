"""Kernels of X-Dyna. They know torch (and triton), never diffusers."""

from .reference_attention import BACKENDS, reference_attention
from .sdpa import attend_both

__all__ = ["BACKENDS", "attend_both", "reference_attention"]

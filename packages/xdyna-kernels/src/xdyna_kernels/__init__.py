"""Kernels of X-Dyna. They know torch (and triton), never diffusers."""

from .reference_attention import BACKENDS, reference_attention

__all__ = ["BACKENDS", "reference_attention"]

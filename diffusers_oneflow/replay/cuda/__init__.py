"""Kernels for NVIDIA GPUs: libraries that torch loads for the heavy ops, Triton for what is bound by memory.

Triton compiles a kernel when a graph is built, and keeps it on disk; it takes no nvcc.
"""

from .table import TABLE

__all__ = ["TABLE"]

from . import attention, convolutions, light, moves, norms, products, upsampling  # noqa: F401 (they fill the table)

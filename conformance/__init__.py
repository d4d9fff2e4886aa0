"""Numerical parity of OneFlow with PyTorch, pipeline by pipeline: ``python -m conformance``."""

import os

# Nothing here is to find, or to leave, programs on disk; what measures the cache names its own folder.
os.environ.setdefault("DIFFUSERS_ONEFLOW_CACHE", "off")

"""Measurements of OneFlow against torch; each module runs as ``python -m benchmarks.<name>``."""

import os

# Nothing here is to find, or to leave, programs on disk; what measures the cache names its own folder.
os.environ.setdefault("DIFFUSERS_ONEFLOW_CACHE", "off")

"""Measurements of OneFlow against torch; each module runs as ``python -m benchmarks.<name>``."""

"""Numerical parity of OneFlow with PyTorch, pipeline by pipeline: ``python -m conformance``."""

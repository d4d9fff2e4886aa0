"""Graphs on devices for which OneFlow's wheel has no kernels: OneFlow plans them, and the plan is replayed there.

OneFlow compiles a program as on the CPU: one `dfo_recorded` op for each step, whose run only writes down where its output lies.
The steps themselves are functions on torch tensors of the device; run once in that order, on memory laid out by OneFlow's plan,
they are captured as a CUDA graph. A call then costs one launch, and OneFlow's own CUDA device is never touched: its last wheel
has no code for Hopper or newer, and would end the process there.
"""

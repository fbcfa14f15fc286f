"""The time loop, written once for every cell: two Triton kernels, and the same loop in PyTorch."""

"""Compile the kernels ahead of time, without a GPU, and judge what comes out."""

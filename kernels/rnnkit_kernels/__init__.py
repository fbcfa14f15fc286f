"""Fused recurrent kernels for PyTorch: gate maths, the time loop, and the torch operators on top.

`rnnkit_kernels.functional` is the only door; everything else is reached through it.
"""

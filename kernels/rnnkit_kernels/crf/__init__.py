"""The partition function of a linear-chain CRF: loops in PyTorch, kernels in Triton."""

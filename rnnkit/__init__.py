"""Fused recurrent layers for PyTorch."""

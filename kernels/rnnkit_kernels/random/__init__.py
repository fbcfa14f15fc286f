"""Random masks that depend on nothing but seed, layer, step, sequence and feature."""

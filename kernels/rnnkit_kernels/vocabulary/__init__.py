"""A linear layer and cross-entropy over a vocabulary as one operator, tile by tile."""

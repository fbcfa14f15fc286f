"""Screen: what stands on a terminal and in a picture."""

"""The recurrence as torch operators: opaque to `torch.compile`, differentiable twice."""

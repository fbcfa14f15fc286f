"""The recurrence as torch operators: opaque to `torch.compile`, functional, differentiable twice.

Layers and stacks run whole, input product included; their backward passes are operators too.
"""

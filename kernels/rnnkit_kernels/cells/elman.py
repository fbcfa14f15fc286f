"""Elman network (Elman 1990): h' = φ(W x + b + R h + b_h), φ = tanh or ReLU.

Nothing is saved beside h': φ′ is 1 − h'² for tanh, and 1 where h' > 0 for ReLU.
"""


def tanh_forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step with tanh."""
    return (), (tanh(x_gates[0] + h_gates[0]),)


def tanh_backward(saved, before, after, gradient, carry, weights, tanh):
    """∂L/∂(W x + R h) with tanh′ = 1 − h'²."""
    return (gradient * (1 - after[0] * after[0]),), ()


def relu_forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step with max(0, x)."""
    return (), (relu(x_gates[0] + h_gates[0]),)


def relu_backward(saved, before, after, gradient, carry, weights, tanh):
    """∂L/∂(W x + R h): the gradient where the unit is on."""
    return (gradient * (after[0] > 0),), ()

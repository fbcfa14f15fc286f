"""Residual in time: a cell whose step is added to the state, h' = f(h, x) + h.

    Elman: h' = φ(W x + b + R h + b_h) + h,   φ = tanh or ReLU
    GRU:   h' = z ⊙ h + (1 − z) ⊙ n + h       r, z, n as in `gru.py`, reset after

∂h'/∂h is ∂f/∂h + I (He et al. 2016, with time for depth), so gradients have a way back through time
that no weight and no gate shrinks. φ is saved, though h' − h holds it: that difference cancels
where |h| has grown, to nothing but rounding in half precision.
"""


def tanh_forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step with tanh; saves tanh(W x + R h)."""
    activation = tanh(x_gates[0] + h_gates[0])
    return (activation,), (state[0] + activation,)


def tanh_backward(saved, before, after, gradient, carry, weights, tanh):
    """∂L/∂(W x + R h) with tanh′ = 1 − tanh², and all of ∂L/∂h' to the step before."""
    d_hidden = gradient + carry[0]
    return (d_hidden * (1 - saved[0] * saved[0]),), (d_hidden,)


def relu_forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step with max(0, x); saves it, for it tells which units are on."""
    activation = relu(x_gates[0] + h_gates[0])
    return (activation,), (state[0] + activation,)


def relu_backward(saved, before, after, gradient, carry, weights, tanh):
    """∂L/∂(W x + R h) where the unit is on, and all of ∂L/∂h' to the step before."""
    d_hidden = gradient + carry[0]
    return (d_hidden * (saved[0] > 0),), (d_hidden,)


def gru_forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step; saves r, z, n and R_n h + b_hn, which ∂L/∂r needs."""
    reset_gate = sigmoid(x_gates[0] + h_gates[0])
    update_gate = sigmoid(x_gates[1] + h_gates[1])
    candidate = tanh(x_gates[2] + reset_gate * h_gates[2])
    hidden_state = update_gate * state[0] + (1 - update_gate) * candidate + state[0]
    return (reset_gate, update_gate, candidate, h_gates[2]), (hidden_state,)


def gru_backward(saved, before, after, gradient, carry, weights, tanh):
    """Columns n (input side), r, z, n (hidden side), as the GRU's; h also passes by the gates."""
    reset_gate, update_gate, candidate, hidden_candidate = saved
    d_hidden = gradient + carry[0]
    d_candidate = d_hidden * (1 - update_gate) * (1 - candidate * candidate)
    d_reset = d_candidate * hidden_candidate * reset_gate * (1 - reset_gate)
    d_update = d_hidden * (before[0] - candidate) * update_gate * (1 - update_gate)
    columns = (d_candidate, d_reset, d_update, d_candidate * reset_gate)
    return columns, (d_hidden * update_gate + d_hidden,)

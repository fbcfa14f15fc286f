"""Gated recurrent unit (Cho et al. 2014), in both of its published forms.

    r, z = σ(W x + R h + b)
    n    = tanh(W_n x + b_n + r ⊙ (R_n h + b_hn))     reset after (arXiv 1406.1078v1, torch, cuDNN)
    n    = tanh(W_n x + b_n + R_n (r ⊙ h) + b_hn)     reset before (arXiv 1406.1078v3)
    h'   = z ⊙ h + (1 − z) ⊙ n

Reset before needs r of all units before its second product: two stages a step.
"""


def forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step, reset after; saves r, z, n and R_n h + b_hn, which ∂L/∂r needs."""
    reset_gate = sigmoid(x_gates[0] + h_gates[0])
    update_gate = sigmoid(x_gates[1] + h_gates[1])
    candidate = tanh(x_gates[2] + reset_gate * h_gates[2])
    hidden_state = update_gate * state[0] + (1 - update_gate) * candidate
    return (reset_gate, update_gate, candidate, h_gates[2]), (hidden_state,)


def backward(saved, before, after, gradient, carry, weights, tanh):
    """Columns n (input side), r, z, n (hidden side): the last three lie as `weight_hh` does."""
    reset_gate, update_gate, candidate, hidden_candidate = saved
    d_hidden = gradient + carry[0]
    d_candidate = d_hidden * (1 - update_gate) * (1 - candidate * candidate)
    d_reset = d_candidate * hidden_candidate * reset_gate * (1 - reset_gate)
    d_update = d_hidden * (before[0] - candidate) * update_gate * (1 - update_gate)
    columns = (d_candidate, d_reset, d_update, d_candidate * reset_gate)
    return columns, (d_hidden * update_gate,)


def reset_forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """First stage of reset before: r and z from h; the next operand is r ⊙ h."""
    reset_gate = sigmoid(x_gates[0] + h_gates[0])
    update_gate = sigmoid(x_gates[1] + h_gates[1])
    return (reset_gate, update_gate), (reset_gate * state[0],)


def candidate_forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """Second stage of reset before: n from r ⊙ h, and the new h."""
    update_gate = saved[1]
    candidate = tanh(x_gates[0] + h_gates[0])
    return (candidate,), (update_gate * state[0] + (1 - update_gate) * candidate,)


def candidate_backward(saved, before, after, gradient, carry, weights, tanh):
    """Columns z and n: all that can be known before ∂L/∂(r ⊙ h) is."""
    update_gate, candidate = saved[1], saved[2]
    d_hidden = gradient + carry[0]
    d_update = d_hidden * (before[0] - candidate) * update_gate * (1 - update_gate)
    d_candidate = d_hidden * (1 - update_gate) * (1 - candidate * candidate)
    return (d_update, d_candidate), (d_hidden * update_gate,)


def reset_backward(saved, before, after, gradient, carry, weights, tanh):
    """Column r from ∂L/∂(r ⊙ h), whose other half joins the carry."""
    reset_gate = saved[0]
    d_reset = gradient * before[0] * reset_gate * (1 - reset_gate)
    return (d_reset,), (carry[0] + gradient * reset_gate,)


def reset_operand(saved, hidden_state):
    """What the second stage multiplied: r ⊙ h."""
    return saved[0] * hidden_state

"""LSTM with the input gate tied to the forget gate: i = 1 − f (Greff et al. 2017, "CIFG").

f  = σ(W x + R h + b + p_f ⊙ c)      gates in the order f, g, o; p only with peepholes
g  = tanh(W x + R h + b)
c' = f ⊙ c + (1 − f) ⊙ g
o  = σ(W x + R h + b + p_o ⊙ c')
h' = o ⊙ tanh(c')

One gate less, so a quarter less to multiply. Greff et al. keep i and write f = 1 − i, which only
flips the signs of that gate's weights.
"""


def forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step without peepholes; saves the three activated gates."""
    forget_gate = sigmoid(x_gates[0] + h_gates[0])
    candidate = tanh(x_gates[1] + h_gates[1])
    cell_state = forget_gate * state[1] + (1 - forget_gate) * candidate
    output_gate = sigmoid(x_gates[2] + h_gates[2])
    return (forget_gate, candidate, output_gate), (output_gate * tanh(cell_state), cell_state)


def backward(saved, before, after, gradient, carry, weights, tanh):
    """∂L/∂(f, g, o) before activation, and ∂L/∂c of the step before."""
    forget_gate, candidate, output_gate = saved
    tanh_cell = tanh(after[1])
    d_output = gradient * tanh_cell * output_gate * (1 - output_gate)
    d_cell = carry[0] + gradient * output_gate * (1 - tanh_cell * tanh_cell)
    d_forget = d_cell * (before[1] - candidate) * forget_gate * (1 - forget_gate)
    d_candidate = d_cell * (1 - forget_gate) * (1 - candidate * candidate)
    return (d_forget, d_candidate, d_output), (d_cell * forget_gate,)


def peephole_forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step with peepholes p_f, p_o; saves the three activated gates."""
    forget_gate = sigmoid(x_gates[0] + h_gates[0] + weights[0] * state[1])
    candidate = tanh(x_gates[1] + h_gates[1])
    cell_state = forget_gate * state[1] + (1 - forget_gate) * candidate
    output_gate = sigmoid(x_gates[2] + h_gates[2] + weights[1] * cell_state)
    return (forget_gate, candidate, output_gate), (output_gate * tanh(cell_state), cell_state)


def peephole_backward(saved, before, after, gradient, carry, weights, tanh):
    """As `backward`; c and c' also reach the loss through the gates that see them."""
    forget_gate, candidate, output_gate = saved
    tanh_cell = tanh(after[1])
    d_output = gradient * tanh_cell * output_gate * (1 - output_gate)
    d_cell = carry[0] + gradient * output_gate * (1 - tanh_cell * tanh_cell)
    d_cell = d_cell + d_output * weights[1]
    d_forget = d_cell * (before[1] - candidate) * forget_gate * (1 - forget_gate)
    d_candidate = d_cell * (1 - forget_gate) * (1 - candidate * candidate)
    return (d_forget, d_candidate, d_output), (d_cell * forget_gate + d_forget * weights[0],)


def peephole_weight_gradients(columns, before, after):
    """∂L/∂(p_f, p_o) of each row."""
    return columns[0] * before[1], columns[2] * after[1]

"""LSTM whose gates see the cell state (Gers & Schmidhuber 2000; Graves 2013, eqs. 7–11).

i, f = σ(W x + R h + b + p ⊙ c)       gates in torch's order i, f, g, o
g    = tanh(W x + R h + b)
c'   = f ⊙ c + i ⊙ g
o    = σ(W x + R h + b + p_o ⊙ c')    the output gate alone sees the new cell state
h'   = o ⊙ tanh(c')

The weights p_i, p_f, p_o are one value a unit: a gate sees the cell of its own unit only.
"""


def forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step; saves the four activated gates."""
    input_gate = sigmoid(x_gates[0] + h_gates[0] + weights[0] * state[1])
    forget_gate = sigmoid(x_gates[1] + h_gates[1] + weights[1] * state[1])
    candidate = tanh(x_gates[2] + h_gates[2])
    cell_state = forget_gate * state[1] + input_gate * candidate
    output_gate = sigmoid(x_gates[3] + h_gates[3] + weights[2] * cell_state)
    hidden_state = output_gate * tanh(cell_state)
    return (input_gate, forget_gate, candidate, output_gate), (hidden_state, cell_state)


def backward(saved, before, after, gradient, carry, weights, tanh):
    """∂L/∂(i, f, g, o) before activation, and ∂L/∂c of the step before."""
    input_gate, forget_gate, candidate, output_gate = saved
    tanh_cell = tanh(after[1])
    d_output = gradient * tanh_cell * output_gate * (1 - output_gate)
    d_cell = carry[0] + gradient * output_gate * (1 - tanh_cell * tanh_cell)
    d_cell = d_cell + d_output * weights[2]
    d_input = d_cell * candidate * input_gate * (1 - input_gate)
    d_forget = d_cell * before[1] * forget_gate * (1 - forget_gate)
    d_candidate = d_cell * input_gate * (1 - candidate * candidate)
    d_cell_before = d_cell * forget_gate + d_input * weights[0] + d_forget * weights[1]
    return (d_input, d_forget, d_candidate, d_output), (d_cell_before,)


def weight_gradients(columns, before, after):
    """∂L/∂(p_i, p_f, p_o) of each row."""
    return columns[0] * before[1], columns[1] * before[1], columns[3] * after[1]

"""Long short-term memory (Hochreiter & Schmidhuber 1997, with Gers et al.'s forget gate).

i, f, o = σ(W x + R h + b)        gates in torch's order i, f, g, o
g       = tanh(W x + R h + b)
c'      = f ⊙ c + i ⊙ g
h'      = o ⊙ tanh(c')
"""


def forward(x_gates, h_gates, saved, state, weights, sigmoid, tanh, relu):
    """One step; saves the four activated gates."""
    input_gate = sigmoid(x_gates[0] + h_gates[0])
    forget_gate = sigmoid(x_gates[1] + h_gates[1])
    candidate = tanh(x_gates[2] + h_gates[2])
    output_gate = sigmoid(x_gates[3] + h_gates[3])
    cell_state = forget_gate * state[1] + input_gate * candidate
    hidden_state = output_gate * tanh(cell_state)
    return (input_gate, forget_gate, candidate, output_gate), (hidden_state, cell_state)


def backward(saved, before, after, gradient, carry, weights, tanh):
    """∂L/∂(i, f, g, o) before activation, and ∂L/∂c of the step before."""
    input_gate, forget_gate, candidate, output_gate = saved
    tanh_cell = tanh(after[1])
    d_cell = carry[0] + gradient * output_gate * (1 - tanh_cell * tanh_cell)
    d_input = d_cell * candidate * input_gate * (1 - input_gate)
    d_forget = d_cell * before[1] * forget_gate * (1 - forget_gate)
    d_candidate = d_cell * input_gate * (1 - candidate * candidate)
    d_output = gradient * tanh_cell * output_gate * (1 - output_gate)
    return (d_input, d_forget, d_candidate, d_output), (d_cell * forget_gate,)

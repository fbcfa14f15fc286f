"""On a CPU: ragged LSTMs in oneDNN, padded in groups of similar length; products of matrices."""

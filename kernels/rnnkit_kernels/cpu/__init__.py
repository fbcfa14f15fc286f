"""The time loop on a CPU: ragged LSTMs in oneDNN, padded in groups of similar length."""

"""Training: what every task's training shares, from the Task base to the command."""

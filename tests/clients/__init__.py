"""Other people's packages with rnnkit's layers in them; skipped where they are not installed."""

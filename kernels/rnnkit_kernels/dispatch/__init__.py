"""Which engine runs a layer, and why; the measured tables that `backend="auto"` reads."""

"""Callbacks: what a run shows, draws and keeps while it trains."""

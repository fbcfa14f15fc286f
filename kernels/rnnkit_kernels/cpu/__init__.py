"""The native CPU engine: its sources, build, library and rule; and oneDNN where that is faster."""

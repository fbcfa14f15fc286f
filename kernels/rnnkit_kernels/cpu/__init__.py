"""The native CPU engine: its sources, build, library and rule; oneDNN where it is the better one."""

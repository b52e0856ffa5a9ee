"""Experiments: one file a run. Each has `get_config()`; its docstring says command, hardware and expected numbers."""

"""Measurements of the product against what a reader would otherwise use; each module's docstring gives its command."""

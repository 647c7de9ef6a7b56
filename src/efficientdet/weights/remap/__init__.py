"""Tensor names and layouts of other implementations."""

"""Samples to weights: matching, losses, schedule, and the run on Lightning."""

"""Images to per-level class logits and box deltas: the paper's sections 3 and 4."""

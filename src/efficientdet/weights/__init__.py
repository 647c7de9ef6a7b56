"""Names and files to state dicts: our checkpoints, the registry of released weights, and foreign formats."""

from efficientdet.weights.foreign import load_foreign, to_foreign

__all__ = ["load_foreign", "to_foreign"]

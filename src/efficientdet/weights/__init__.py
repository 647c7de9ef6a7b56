"""Names and files to state dicts: our checkpoints, the registry of released weights, and foreign formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efficientdet.weights.foreign import load_foreign, to_foreign

__all__ = ["load_foreign", "to_foreign"]


def __getattr__(name: str) -> Any:
    """Import a public name, and with it torch, when it is used."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from efficientdet.weights import foreign

    return getattr(foreign, name)

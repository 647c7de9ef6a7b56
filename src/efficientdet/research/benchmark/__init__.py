"""`benchmark`: models, backends, precisions and batch sizes side by side, and a peer among them.

Every measured side is a process of its own that waits while the others work; they take turns, A B C A B C, so that a
machine that slows down slows all of them, and every round gives ratios of its own.
"""

from __future__ import annotations

from pathlib import Path


def effdet_side_path() -> Path:
    """The script that effdet's own python runs; see `effdet_side`."""
    return Path(__file__).with_name("effdet_side.py")

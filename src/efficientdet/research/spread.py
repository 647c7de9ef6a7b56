"""Several measurements of one thing, summed up."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple


class Spread(NamedTuple):
    """Median, least and largest of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one measurement."""
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        """`12.3 (11.9-14.0)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"

    def __str__(self) -> str:
        """`12.3 (11.9-14)`, four digits each."""
        middle, low, high = (f"{value:.0f}" if value >= 1000 else f"{value:.4g}" for value in self)
        return f"{middle} ({low}-{high})"

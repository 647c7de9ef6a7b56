"""What the sides of a case measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from cases import Side
from checks import Check

# The parts of a prediction, as `Detector.timer` names them.
PARTS = ("decode", "preprocess", "network", "postprocess")


@dataclass(frozen=True)
class SideResult:
    """What one side measured.

    Attributes:
        side: the side.
        rounds: each a list of iterations, each milliseconds by part.
        peak_mib: the most memory that its process held.
        facts: what it reported before it was measured.
    """

    side: Side
    rounds: list[list[dict[str, float]]]
    peak_mib: float | None
    facts: dict[str, Any]

    @property
    def label(self) -> str:
        """Its name in the report."""
        return self.side.label

    @property
    def is_peer(self) -> bool:
        """Whether it is effdet."""
        return self.side.is_peer

    @property
    def group(self) -> str:
        """See `cases.Side`."""
        return self.side.group

    def times(self, part: str = "total") -> list[float]:
        """Every iteration's milliseconds in a part."""
        return [times.get(part, 0.0) for one in self.rounds for times in one]

    def round_medians(self, part: str = "total") -> list[float]:
        """Median milliseconds of each round in a part."""
        return [median(times.get(part, 0.0) for times in one) for one in self.rounds]


@dataclass(frozen=True)
class Result:
    """A case's sides, measured in turns.

    Attributes:
        task: the section of the report.
        title: heading.
        network: whose weights the sides had.
        num_classes: classes of its head.
        size: side of the input.
        images: how many images were predicted together or one after the other.
        notes: what is to be said of sides that were not measured.
        sides: ours first.
        checks: what was compared before.
        table: a table of its own, instead of the one of times.
    """

    task: str
    title: str
    network: str
    num_classes: int
    size: int
    images: int
    sides: list[SideResult]
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)

    def pairs(self) -> list[tuple[SideResult, SideResult]]:
        """Ours beside the peers that it is compared with; in training also the fastest beside the fastest."""
        ours, peers = ([side for side in self.sides if side.is_peer is is_peer] for is_peer in (False, True))
        pairs = [(our, peer) for our in ours for peer in peers if peer.group in (our.group, *our.side.beside)]
        if self.task == "train" and all(side.rounds for side in self.sides) and ours and peers:
            best = fastest(ours), fastest(peers)
            pairs += [best] if best not in pairs else []
        return pairs

    def find(self, label: str) -> SideResult | None:
        """The side with a label, if it was measured."""
        return next((side for side in self.sides if side.label == label), None)

    def find_peer(self, group: str) -> SideResult | None:
        """The peer of a group, if it was measured."""
        return next((side for side in self.sides if side.is_peer and side.group == group), None)


def fastest(sides: Iterable[SideResult]) -> SideResult:
    """The side with the smallest median time."""
    return min(sides, key=lambda side: median(side.times()))


def ratios(our: SideResult, peer: SideResult) -> list[float]:
    """The peer's time over ours, by round."""
    return [theirs / own for own, theirs in zip(our.round_medians(), peer.round_medians(), strict=True)]

"""What a benchmark found, as rows for a table and as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from statistics import median
from typing import Any

from efficientdet.research.benchmark.hardware import Hardware
from efficientdet.research.benchmark.processes import Worker
from efficientdet.research.benchmark.steps import PARTS
from efficientdet.research.spread import Spread


@dataclass(frozen=True)
class Row:
    """One measured side.

    Attributes:
        model: as the user called it.
        backend: what ran it; a peer's name for a peer.
        precision: of the arithmetic.
        batch: pictures at a time.
        input_size: (height, width) of the network's input.
        total: milliseconds from files to boxes, a batch; of a peer that is a file, of the network alone.
        parts: median milliseconds by the names in `PARTS`, as far as it has them.
        network: of the network alone.
        images_per_second: from files to boxes.
        peak_mib: the most memory that its process held, where the system tells.
        floor_ms: the least time in which this machine could run the network; None where that is not known.
        rounds: median total of each round.
        network_rounds: of the network alone.
    """

    model: str
    backend: str
    precision: str
    batch: int
    input_size: tuple[int, int]
    total: Spread
    parts: dict[str, float]
    network: Spread
    images_per_second: float
    peak_mib: float | None
    floor_ms: float | None
    rounds: list[float]
    network_rounds: list[float]

    @classmethod
    def of(cls, worker: Worker, **facts: Any) -> Row:
        """From what a worker has measured, and the fields that it does not know."""
        total = Spread.of(worker.times())
        measured = {part for times in worker.rounds[0] for part in times}
        parts = {part: median(worker.times(part)) for part in PARTS if part in measured}
        return cls(
            total=total, parts=parts, network=Spread.of(worker.times("network")),
            images_per_second=1000 * facts["batch"] / total.median, peak_mib=worker.peak_mib,
            rounds=worker.round_medians(), network_rounds=worker.round_medians("network"), **facts,
        )  # fmt: skip

    @property
    def over_floor(self) -> float | None:
        """How many times the floor the network takes."""
        return self.network.median / self.floor_ms if self.floor_ms else None

    def table_row(self) -> dict[str, Any]:
        """For people: milliseconds, pictures and MiB, rounded."""
        return {
            "model": self.model,
            "backend": self.backend,
            "precision": self.precision,
            "batch": self.batch,
            "input": "x".join(map(str, self.input_size)),
            "images/s": f"{self.images_per_second:.1f}",
            "total ms": self.total.text(1),
            **{part: f"{self.parts[part]:.1f}" if part in self.parts else None for part in PARTS},
            "peak MiB": None if self.peak_mib is None else f"{self.peak_mib:.0f}",
            "x floor": None if self.over_floor is None else f"{self.over_floor:.1f}",
        }


@dataclass(frozen=True)
class Ratio:
    """A peer's time over ours, taken round by round: above 1, this package is faster."""

    model: str
    ours: str
    peer: str
    batch: int
    whole: Spread | None
    network: Spread

    def table_row(self) -> dict[str, Any]:
        """For people."""
        return {
            "model": self.model,
            "ours": self.ours,
            "peer": self.peer,
            "batch": self.batch,
            "files to boxes": None if self.whole is None else self.whole.text(2),
            "network": self.network.text(2),
        }


def ratio(our: Row, peer: Row) -> Ratio:
    """Compare two sides of one run; a peer that has no parts but the network is compared by that alone."""
    whole = [theirs / own for own, theirs in zip(our.rounds, peer.rounds, strict=False)]
    network = [theirs / own for own, theirs in zip(our.network_rounds, peer.network_rounds, strict=False)]
    has_whole = len(peer.parts) > 1
    return Ratio(
        our.model, f"{our.backend} {our.precision}", peer.backend, our.batch,
        Spread.of(whole) if has_whole else None, Spread.of(network),
    )  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """All of a run.

    Attributes:
        hardware: where, and whether it was busy before.
        rows: one a side.
        ratios: ours beside each peer.
        notes: what a reader must know of the rows.
        failures: the sides that failed, and why.
        settings: what was asked for.
    """

    hardware: Hardware
    rows: list[Row]
    ratios: list[Ratio]
    notes: list[str]
    failures: list[str]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; spreads are objects with median, low and high."""
        return {
            "hardware": self.hardware.to_dict(),
            "settings": self.settings,
            "rows": [
                {
                    **dataclasses.asdict(row), "total": row.total._asdict(), "network": row.network._asdict(),
                    "over_floor": row.over_floor,
                }
                for row in self.rows
            ],
            "ratios": [
                {
                    **dataclasses.asdict(one), "whole": None if one.whole is None else one.whole._asdict(),
                    "network": one.network._asdict(),
                }
                for one in self.ratios
            ],
            "notes": self.notes,
            "failures": self.failures,
        }  # fmt: skip

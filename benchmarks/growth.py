"""How the network's time grows with its multiply-adds: as a table, and as a picture in SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from efficientdet.family import MODELS
from efficientdet.research.benchmark.floors import multiply_adds

if TYPE_CHECKING:
    from report import Result

# How far from proportional to the multiply-adds the time may be.
TOLERANCE = 0.3
# Of the picture, in pixels: (width, height), and what the axes keep free.
SIZE, MARGIN = (640, 420), 60


class Point(NamedTuple):
    """A model: its multiply-adds in 10**9, its time, and its time for a GMAC over the first model's, by round."""

    name: str
    gmac: float
    milliseconds: float
    ratios: list[float]


def points(result: Result) -> list[Point]:
    """One a side, the first as the measure of the others."""
    found: list[Point] = []
    first = result.sides[0]
    gmac_of = {
        side.label: multiply_adds(MODELS[side.label], result.num_classes, side.facts["input_size"]) / 1e9
        for side in result.sides
    }
    for side in result.sides:
        gmac = gmac_of[side.label]
        rounds = zip(side.round_medians(), first.round_medians(), strict=False)
        ratios = [own / gmac / (base / gmac_of[first.label]) for own, base in rounds]
        found.append(Point(side.label, gmac, median(side.times()), ratios))
    return found


def is_proportional(point: Point) -> bool:
    """Whether it takes as long for a GMAC as the first model, to the tolerance."""
    return abs(median(point.ratios) - 1) <= TOLERANCE


def draw(found: Sequence[Point]) -> str:
    """An SVG: time over multiply-adds, both logarithmic, with the line of proportion through the first and its band."""
    first = found[0]
    low_x, high_x = min(p.gmac for p in found) / 1.5, max(p.gmac for p in found) * 1.5
    rate = first.milliseconds / first.gmac
    ends = [rate * low_x * (1 - TOLERANCE), rate * high_x * (1 + TOLERANCE), *(p.milliseconds for p in found)]
    low_y, high_y = min(ends) / 1.2, max(ends) * 1.2
    width, height = SIZE

    def at(gmac: float, milliseconds: float) -> tuple[float, float]:
        across = math.log(gmac / low_x) / math.log(high_x / low_x)
        up = math.log(milliseconds / low_y) / math.log(high_y / low_y)
        return MARGIN + across * (width - MARGIN - 20), height - MARGIN - up * (height - MARGIN - 20)

    def line(factor: float, style: str) -> str:
        (x1, y1), (x2, y2) = at(low_x, rate * low_x * factor), at(high_x, rate * high_x * factor)
        return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#667080" {style}/>'

    bottom, left = height - MARGIN, MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        line(1.0, ""), line(1 - TOLERANCE, 'stroke-dasharray="4 4"'), line(1 + TOLERANCE, 'stroke-dasharray="4 4"'),
        f'<path d="M{left} 20V{bottom}H{width - 20}" fill="none" stroke="black"/>',
        f'<text x="{(left + width) / 2}" y="{height - 12}" text-anchor="middle">multiply-adds, 10⁹ (log)</text>',
        f'<text transform="translate(16 {bottom / 2}) rotate(-90)" text-anchor="middle">milliseconds (log)</text>',
    ]  # fmt: skip
    for x in _ticks(low_x, high_x):
        across, _ = at(x, low_y)
        parts.append(f'<text x="{across:.1f}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>')
    for y in _ticks(low_y, high_y):
        _, up = at(low_x, y)
        parts.append(f'<text x="{left - 6}" y="{up + 4:.1f}" text-anchor="end">{y:g}</text>')
    for point in found:
        x, y = at(point.gmac, point.milliseconds)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#2f6fb7"/>')
        parts.append(f'<text x="{x + 9:.1f}" y="{y + 14:.1f}">{point.name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... between two numbers."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**exponent for exponent in exponents for step in (1, 2, 5)]
    return [value for value in values if low <= value <= high]

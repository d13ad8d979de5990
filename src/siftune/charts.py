"""The geometry of charts, in percent of the plot: a page scales them and not their text."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
MAX_BINS = 40  # more, and the bars are thinner than the gaps between them on a phone


@dataclass(frozen=True)
class Scale:
    """A linear axis from `low` to `high`, with ticks at multiples of a round `step`."""

    low: float
    high: float
    step: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value lies, in percent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)

    def label(self, tick: float) -> str:
        """A tick in words, with the digits that tell it from its neighbours."""
        if self.step < 1e-3:
            leading = math.floor(math.log10(abs(tick))) if tick else 0
            return f"{tick:.{max(1, leading - math.floor(math.log10(self.step)) + 1)}g}"
        return f"{tick:,.{max(0, -math.floor(math.log10(self.step) + 1e-9))}f}"


def round_scale(values: Iterable[float], *, num_steps: int = 4) -> Scale:
    """The scale of about `num_steps` round steps that begins and ends at a tick."""
    found = sorted(values)
    low, high = found[0], found[-1]
    if low == high:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / num_steps)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(number * step, 10) for number in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], step, ticks)


def tight_scale(low: float, high: float, *, num_steps: int = 4) -> Scale:
    """The scale that ends at `low` and `high` themselves; its ticks are round."""
    whole = round_scale((low, high), num_steps=num_steps)
    if low == high:
        return whole
    return Scale(low, high, whole.step, tuple(t for t in whole.ticks if low <= t <= high))


def steps_scale(last: int, *, num_steps: int) -> Scale:
    """From step 0 to the last step of a training, with ticks at whole steps."""
    return tight_scale(0, last, num_steps=min(num_steps, last))


@dataclass(frozen=True)
class LineChart:
    """Named lines over one x axis and one y axis."""

    lines: Mapping[str, Points]
    x: Scale
    y: Scale

    def polyline(self, name: str) -> str:
        """SVG's `points` in a box of 100 by 100; y grows upwards."""
        return " ".join(f"{self.x.at(x):g},{100 - self.y.at(y):g}" for x, y in self.lines[name])

    def summary(self) -> str:
        """The lines in words, for those who do not see them."""
        return "; ".join(
            f"{name.replace('_', ' ')} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
            for name, points in self.lines.items()
        )


@dataclass(frozen=True)
class Bar:
    """One part of a histogram's bar: left, top, width and height in percent of the plot."""

    name: str
    left: float
    top: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """Bars, the parts of one bin stacked, first name at the bottom."""

    names: list[str]
    bars: list[Bar]
    x: Scale
    y: Scale


def histogram(counts: dict[str, dict[int, int]], *, bin_width: int) -> Histogram:
    """Stack `counts` (name → lower edge of the bin → count).

    Edges are multiples of `bin_width`; too many narrow bins become fewer wide ones.
    """
    found = {edge for bins in counts.values() for edge in bins}
    bin_width *= math.ceil((max(found) - min(found) + bin_width) / bin_width / MAX_BINS)
    counts = {name: _widen(bins, bin_width) for name, bins in counts.items()}
    edges = sorted({edge for bins in counts.values() for edge in bins})
    x = _edge_scale(edges[0], edges[-1] + bin_width, bin_width=bin_width)
    totals = {edge: sum(bins.get(edge, 0) for bins in counts.values()) for edge in edges}
    y = tight_scale(0, max(totals.values()), num_steps=3)
    bars = []
    below = dict.fromkeys(edges, 0)
    for name, bins in counts.items():
        for edge, number in sorted(bins.items()):
            below[edge] += number
            bars.append(
                Bar(
                    name,
                    left=x.at(edge),
                    top=100 - y.at(below[edge]),
                    width=x.at(x.low + bin_width),
                    height=y.at(number),
                    title=f"{edge:g} to {edge + bin_width - 1:g}: {number:g} {name}",
                )
            )
    return Histogram(list(counts), bars, x, y)


def histograms(counts: dict[str, dict[int, int]], *, bin_width: int) -> dict[str, Histogram]:
    """By the first word of a name such as `sft train`; where names have one word, by ""."""
    groups: dict[str, dict[str, dict[int, int]]] = {}
    for name, bins in counts.items():
        group, _, part = name.rpartition(" ")
        groups.setdefault(group, {})[part] = bins
    return {
        group: histogram(parts, bin_width=bin_width)
        for group, parts in groups.items()
        if any(parts.values())
    }


def _widen(bins: dict[int, int], bin_width: int) -> dict[int, int]:
    widened: Counter[int] = Counter()
    for edge, number in bins.items():
        widened[edge // bin_width * bin_width] += number
    return widened


def _edge_scale(low: int, high: int, *, bin_width: int, num_steps: int = 7) -> Scale:
    step = bin_width * math.ceil((high - low) / bin_width / num_steps)
    first = math.ceil(low / step) * step
    return Scale(low, high, step, tuple(range(first, high + 1, step)))


def _round_step(step: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(step))
    return next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= step * (1 - 1e-9))

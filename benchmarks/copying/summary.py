"""Rows of cells to figures of methods: rates with intervals, and which method is better than which."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engine.study.intervals import bootstrap
from .measures import ALIGNED, ARRANGEMENT, BACKGROUND, DECORATION, PRIMARY, UNTUNED

Rows = Sequence[dict[str, Any]]

NEARNESS = {
    "copies": PRIMARY,
    "aligned": ALIGNED,
    "arrangement": ARRANGEMENT,
    "background": BACKGROUND,
    "decoration": DECORATION,
}
"""Ways in which a delivered picture may be its source's, by the field of a summary that counts them."""


@dataclass(frozen=True)
class Rate:
    """A share of `count` pictures with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}) of {self.count}"


@dataclass(frozen=True)
class Summary:
    """A method at one strength, over the cells of one selection of sources and the fresh captions.

    copies: share of requests that deliver a copy, by the primary measure. aligned, arrangement, background, decoration,
    untuned: the same by the aligned measure, by where objects stand, by what lies behind them and what decorates that,
    and by each measure that nothing was tuned on. p95, worst: 95th percentile of the similarity, and the
    largest of a source's seeds, means over sources. one_object, two_objects: share of fresh captions whose delivered
    picture shows the right classes. own: the same of the sources' captions. colours: right colours where classes are
    right. refused: share of requests that deliver nothing. avoided: share of fresh captions that a gate takes
    for recalled, 1 without a gate. rows: of the UNet, and seconds, for each request on the
    sources.
    """

    method: str
    strength: float
    copies: Rate | None
    aligned: Rate | None
    arrangement: Rate | None
    background: Rate | None
    decoration: Rate | None
    untuned: dict[str, float]
    p95: float
    worst: float
    own: float
    refused: float
    avoided: float
    one_object: Rate | None
    two_objects: Rate | None
    colours: float
    sharpness: float
    rows: float
    seconds: float

    @property
    def adherence(self) -> float:
        """Mean of both object counts; NaN where one was not drawn."""
        rates = [rate.value if rate else np.nan for rate in (self.one_object, self.two_objects)]
        return float(np.mean(rates))


def summarise(rows: Rows, chosen: Callable[[dict[str, Any]], bool], captions: int | None = None) -> list[Summary]:
    """One summary for each method and strength, copying over the sources whose rows are `chosen`.

    captions: count only so many fresh captions of each object count, all methods the same.
    """
    keys = list(dict.fromkeys((row["method"], row["strength"]) for row in rows))
    return [_summary(*key, [r for r in rows if (r["method"], r["strength"]) == key], chosen, captions) for key in keys]


def _summary(
    method: str, strength: float, rows: Rows, chosen: Callable[[dict[str, Any]], bool], captions: int | None
) -> Summary:
    sourced = [row for row in rows if "source" in row and chosen(row)]
    fresh = {count: _latest(row for row in rows if row.get("objects") == count) for count in (1, 2)}
    drawn = [row for row in fresh.values() if row]
    near = {
        name: _rate([_delivered(row, row["copies"][name]) for row in sourced if name in row["copies"]])
        for name in NEARNESS.values()
    }
    return Summary(
        method,
        strength,
        copies=near[PRIMARY],
        aligned=near[ALIGNED],
        arrangement=near[ARRANGEMENT],
        background=near[BACKGROUND],
        decoration=near[DECORATION],
        untuned={name: _mean(_delivered(row, row["copies"][name]) for row in sourced) for name in UNTUNED},
        p95=_mean([np.quantile(row["similarity"][PRIMARY], 0.95)] for row in sourced),
        worst=_mean([max(row["similarity"][PRIMARY])] for row in sourced),
        own=_mean(_delivered(row, row["classes"]) for row in sourced),
        refused=_mean(1 - np.array(row["delivered"]) for row in sourced),
        avoided=_mean([row["avoided"]] for row in drawn),
        one_object=_rate([_delivered(fresh[1], fresh[1]["classes"])[:captions]]) if fresh[1] else None,
        two_objects=_rate([_delivered(fresh[2], fresh[2]["classes"])[:captions]]) if fresh[2] else None,
        colours=_mean(np.array(row["colours"])[np.array(row["classes"], bool)] for row in drawn),
        sharpness=_mean([row["sharpness"]] for row in drawn),
        rows=_mean([row["rows"]] for row in sourced or drawn),
        seconds=_mean([row["seconds"]] for row in sourced or drawn),
    )


def _latest(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the most pictures: a method may have been drawn at several counts."""
    return max(rows, key=lambda row: row["pictures"], default=None)


def _delivered(row: dict[str, Any], flags: Sequence[int]) -> np.ndarray:
    """Flags of pictures, false for those that were refused."""
    return np.array(flags) * np.array(row["delivered"])


def _rate(clusters: Sequence[np.ndarray]) -> Rate | None:
    if not clusters:
        return None
    values = np.concatenate(clusters)
    return Rate(float(values.mean()), *bootstrap(clusters), len(values))


def _mean(groups: Iterable[Sequence[float] | np.ndarray]) -> float:
    values = [np.asarray(group, float) for group in groups]
    return float(np.concatenate(values).mean()) if values and sum(map(len, values)) else float("nan")


def delivered_counts(rows: Rows, measure: str) -> dict[tuple[str, float], dict[int, tuple[int, int]]]:
    """For each method and strength, by source: how many delivered pictures are its source's by a measure, of how many.

    Of a source that was drawn at several counts, the cell of the most pictures. Rows that are older than the measure
    say nothing of it.
    """
    found: dict[tuple[str, float], dict[int, tuple[int, int]]] = {}
    measured = (row for row in rows if measure in row.get("copies", ()))
    for row in sorted(measured, key=lambda row: row["pictures"]):
        own = found.setdefault((row["method"], row["strength"]), {})
        own[row["source"]] = int(_delivered(row, row["copies"][measure]).sum()), row["pictures"]
    return found


def dominated(points: Sequence[Summary], ours: Sequence[Summary]) -> list[Summary]:
    """Those of `points` for which one of ours copies no more and adheres no less, one of them strictly."""
    return [point for point in points if any(_dominates(own, point) for own in ours)]


def _dominates(a: Summary, b: Summary) -> bool:
    if a.copies is None or b.copies is None:
        return False
    better = a.copies.value <= b.copies.value, a.adherence >= b.adherence
    strictly = a.copies.value < b.copies.value or a.adherence > b.adherence
    return all(better) and strictly

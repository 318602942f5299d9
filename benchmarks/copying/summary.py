"""Rows of cells to figures of methods: rates with intervals, and which method is better than which."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engine.study.intervals import bootstrap
from .measures import ALIGNED, PRIMARY, UNTUNED
from .remains import REMAINS

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Rate:
    """A share of `count` pictures with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True)
class Summary:
    """A method at one strength, over the cells of one selection of sources and the fresh captions.

    copies: share of requests that deliver a copy, by the primary measure. aligned, untuned: the same by the aligned
    measure, and by each measure that nothing was tuned on. near: share of the delivered that are near their source in
    what else may remain of it, NaN where that was not measured. p95, worst: 95th percentile of the similarity, and the
    largest of a source's seeds, means over sources. one_object, two_objects: share of fresh captions whose delivered
    picture shows the right classes. own: the same of the sources' captions. colours: right colours where classes are
    right. refused: share of requests that deliver nothing. avoided: share of fresh captions that a gate takes
    for recalled, 1 without a gate. rows: of the UNet, and seconds, for each request on the
    sources.
    """

    method: str
    strength: float
    copies: Rate | None
    aligned: float
    untuned: dict[str, float]
    near: dict[str, float]
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
    return Summary(
        method,
        strength,
        copies=_rate([_delivered(row, row["copies"][PRIMARY]) for row in sourced]),
        aligned=_mean(_delivered(row, row["copies"][ALIGNED]) for row in sourced),
        untuned={name: _mean(_delivered(row, row["copies"][name]) for row in sourced) for name in UNTUNED},
        near={name: _mean(_seen(row, name) for row in sourced) for name in REMAINS},
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


def _seen(row: dict[str, Any], name: str) -> list[int]:
    """Flags of the pictures that were delivered and in which `name` could be seen; none in rows without them."""
    flags = zip(row.get("near", {}).get(name, ()), row["delivered"], strict=False)
    return [flag for flag, delivered in flags if delivered and flag is not None]


def _rate(clusters: Sequence[np.ndarray]) -> Rate | None:
    if not clusters:
        return None
    values = np.concatenate(clusters)
    return Rate(float(values.mean()), *bootstrap(clusters), len(values))


def _mean(groups: Iterable[Sequence[float] | np.ndarray]) -> float:
    values = [np.asarray(group, float) for group in groups]
    return float(np.concatenate(values).mean()) if values and sum(map(len, values)) else float("nan")


def dominated(points: Sequence[Summary], ours: Sequence[Summary]) -> list[Summary]:
    """Those of `points` for which one of ours copies no more and adheres no less, one of them strictly."""
    return [point for point in points if any(_dominates(own, point) for own in ours)]


def _dominates(a: Summary, b: Summary) -> bool:
    if a.copies is None or b.copies is None:
        return False
    better = a.copies.value <= b.copies.value, a.adherence >= b.adherence
    strictly = a.copies.value < b.copies.value or a.adherence > b.adherence
    return all(better) and strictly

"""How a picture ended, in words: the verdict, the limits it crossed and which way, and what that means to a person."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import isnan
from typing import NamedTuple, Protocol

from ..api.conditions import Comparison
from ..api.metrics import ALL_METRICS, CONTROL_METRICS
from ..api.result import Attempt, GateDecision, Score, Verdict
from ..api.rules import Rule

REGISTERED = "registry_"
"""What a measure against the nearest registered work is called by, before the measure's own name."""

UNCALIBRATED = "this model has no calibrated limits to hold it against"
UNMEASURED = "not measured: nothing is known of the draft's shape, for this model has no segmenter"

HELD_AGAINST_WORKS = "held against registered works alone, of which no limit speaks"

_OPPOSITE = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}


class Judged(Protocol):
    """What a result and a manifest have in common."""

    @property
    def verdict(self) -> Verdict:
        """How it ended."""

    @property
    def attempts(self) -> Sequence[Attempt]:
        """Every final that was drawn."""

    @property
    def gate(self) -> GateDecision | None:
        """What was made of the draft."""

    @property
    def rule(self) -> str:
        """What it was judged by, in numbers; empty for what was not judged."""


class Held(NamedTuple):
    """A measure that was held against a limit: `operator` says what crosses it, ">", ">=", "<" or "<="."""

    name: str
    value: float
    operator: str
    limit: float
    crossed: bool

    def __str__(self) -> str:
        """As it turned out: "tile_l2 0.1 <= 0.161", whichever side of the limit that is."""
        if isnan(self.value):
            return f"{self.name} is not a number (limit {self.operator} {self.limit:.3g})"
        met = Comparison(self.name, self.operator, self.limit).met({self.name: self.value})
        value, limit = _told_apart(self.value, self.limit)
        return f"{self.name} {value} {self.operator if met else _OPPOSITE[self.operator]} {limit}"


def held_measures(scores: Mapping[str, Score], rule: str = "") -> list[Held]:
    """The measures that have a limit: those that crossed it first, and of these those that refuse.

    rule: what they were judged by, in numbers; "" for what no rule speaks of.
    """
    places = {comparison.metric: place for place, comparison in reversed(list(enumerate(_comparisons(rule))))}
    found = [
        Held(name, score.value, _operator(name, score.limit, rule), score.limit, not score.passed)
        for name, score in scores.items()
        if score.limit is not None
    ]
    return sorted(found, key=lambda held: (not held.crossed, places.get(held.name, 0)))


def verdict_text(judged: Judged) -> str:
    """How a result ended: "accepted after 1 retry", "refused after 2 retries", "accepted, the plain picture"."""
    retries = max(0, len(judged.attempts) - 1)
    after = f" after {retries} retr{'y' if retries == 1 else 'ies'}" if retries else ""
    plain = judged.gate is not None and not judged.gate.opened and len(judged.attempts) == 1
    return f"{judged.verdict.value}{after}{', the plain picture' if plain else ''}"


def why_text(judged: Judged, brought: bool = False) -> str:
    """Why a picture is not simply accepted: "too close to its draft: tile_l2 0.1 <= 0.161"; empty for one that is.

    Of one left to a person, what the person is to look at; of one that was not judged, what there was lacking. brought:
    the user's own picture took the draft's place.
    """
    if not judged.attempts or judged.verdict not in (Verdict.REFUSED, Verdict.REVIEW, Verdict.NOT_JUDGED):
        return ""
    last = judged.attempts[-1]
    if judged.verdict is Verdict.NOT_JUDGED:
        if judged.gate is not None and _is_shut(judged.gate):
            return HELD_AGAINST_WORKS
        return UNMEASURED if last.steps and not last.scores else UNCALIBRATED
    crossed = [held for held in held_measures(last.scores, judged.rule) if held.crossed]
    meant = dict.fromkeys(_meaning(held.name, last.nearest, brought) for held in crossed)
    if judged.verdict is Verdict.REFUSED:
        words = " and ".join(said for said, _ in meant)
    else:
        words = f"a person is to {' and to '.join(asked for _, asked in meant)}"
    return f"{words}: {', '.join(map(str, crossed))}"


def ending_text(judged: Judged, brought: bool = False) -> str:
    """The verdict and why, in one line."""
    return ", ".join(filter(None, (verdict_text(judged), why_text(judged, brought))))


def gate_text(gate: GateDecision) -> str:
    """What the gate made of a draft: "shut, the draft does not look recalled: agreement 0.312 <= 0.737".

    Signals that no limit was set for come last.
    """
    told = ", ".join(scores_in_words(gate.signals))
    found = "shut, as was asked for" if _is_shut(gate) else "shut, the draft does not look recalled"
    return f"{'open' if gate.opened else found}: {told}"


def _is_shut(gate: GateDecision) -> bool:
    """Whether the gate stayed shut whatever the draft looked like: no signal had a limit that could have opened it."""
    return not gate.opened and all(score.limit is None for score in gate.signals.values())


def scores_in_words(scores: Mapping[str, Score], rule: str = "") -> Iterator[str]:
    """Each measure: what crossed its limit, what kept it, then those without one."""
    yield from map(str, held_measures(scores, rule))
    yield from (f"{name} {score.value:.3g}" for name, score in scores.items() if score.limit is None)


def _meaning(name: str, nearest: str | None, brought: bool) -> tuple[str, str]:
    """What it means that this measure crossed its limit, and what a person is to do about it."""
    if name == "colours_kept":
        return "the final took another colour", "see whether its objects have the colours that the prompt names"
    if name in CONTROL_METRICS:
        return "the final lost or repeated an object of its map", "see whether it shows the objects of its map"
    if name.startswith(REGISTERED):
        work = f"registered work {nearest}" if nearest else "a registered work"
        return f"too close to {work}", f"compare it with {work}"
    if name in ALL_METRICS:
        reference = "your picture" if brought else "its draft"
        return f"too close to {reference}", f"compare it with {reference}"
    return "a measure of your own crossed its limit", "look at what your own measure found"


def _operator(name: str, limit: float, rule: str) -> str:
    """The operator by which a limit is crossed: as the rule writes it; of what no rule speaks of, by its direction."""
    for comparison in _comparisons(rule):
        if (comparison.metric, comparison.threshold) == (name, limit):
            return comparison.operator
    metric = ALL_METRICS.get(name.removeprefix(REGISTERED))
    return "<" if metric is not None and metric.direction == "distance" else ">"


@lru_cache(maxsize=64)
def _comparisons(rule: str) -> tuple[Comparison, ...]:
    return Rule.parse(rule).comparisons if rule else ()


def _told_apart(value: float, limit: float) -> tuple[str, str]:
    """Both with three digits, or as many as it takes that different numbers look different."""
    for digits in range(3, 17):
        told = f"{value:.{digits}g}", f"{limit:.{digits}g}"
        if told[0] != told[1] or value == limit:
            break
    return told

"""Conditions on measures: comparisons with thresholds or calibrated limits, joined by "or" and "and"."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from .errors import InvalidRequestError
from .metrics import ASKED_FOR, Direction, range_problem
from .reading import shown

_LONGEST_NAME = 64

Values = Mapping[str, float | None]
"""Measures by name; None for one that does not apply to this picture, which crosses no limit."""


@dataclass(frozen=True)
class Comparison:
    """A measure against a threshold, or against its calibrated limit where that is None."""

    metric: str
    operator: str = ""
    threshold: float | None = None

    def __str__(self) -> str:
        """As it is written."""
        against = "crosses its limit" if self.threshold is None else f"{self.operator} {self.threshold!r}"
        return f"{self.metric} {against}"

    @property
    def catches_low(self) -> bool:
        """Whether small values are what it catches."""
        return self.operator.startswith("<")

    def met(self, values: Values) -> bool:
        """Whether it holds; NaN crosses every threshold. Raises ValueError for what was not measured."""
        if self.metric not in values:
            raise ValueError(f"no measure to hold the limit of {self.metric!r} against; measured: {sorted(values)}")
        assert self.threshold is not None
        value = values[self.metric]
        if value is None:
            return False
        match self.operator:
            case ">":
                return not value <= self.threshold
            case ">=":
                return not value < self.threshold
            case "<":
                return not value >= self.threshold
            case _:
                return not value > self.threshold


@dataclass(frozen=True)
class AnyLimit:
    """Any limit calibrated for the model."""

    def __str__(self) -> str:
        """As it is written."""
        return "any calibrated limit is crossed"


@dataclass(frozen=True)
class Group:
    """Conditions joined by one word, "or" or "and"."""

    word: str
    terms: "tuple[Condition, ...]"

    def __str__(self) -> str:
        """As it is written, groups within in parentheses."""
        return f" {self.word} ".join(f"({term})" if isinstance(term, Group) else str(term) for term in self.terms)


Condition = Comparison | AnyLimit | Group


def joined(word: str, terms: Sequence[Condition]) -> Condition:
    """One condition of several; groups of the same word become one."""
    flat = [term.terms if isinstance(term, Group) and term.word == word else (term,) for term in terms]
    return terms[0] if len(terms) == 1 else Group(word, tuple(term for group in flat for term in group))


def any_of(limits: Mapping[str, float], directions: Mapping[str, Direction]) -> Condition:
    """Whatever crosses one of `limits`."""
    return joined("or", [limit_of(name, limits, directions) for name in sorted(limits)])


def limit_of(name: str, limits: Mapping[str, float], directions: Mapping[str, Direction]) -> Comparison:
    """Whatever crosses the limit of `name`. Raises InvalidRequestError for no measure, or no value that it can have."""
    if name not in directions:
        raise InvalidRequestError(_unknown(name, directions))
    if problem := range_problem(name, limits[name]):
        raise InvalidRequestError(f"limits: {problem}")
    return Comparison(name, ">" if directions[name] == "similarity" else "<", float(limits[name]))


def problem_of(comparison: Comparison, directions: Mapping[str, Direction]) -> str | None:
    """What is wrong with a comparison, None if nothing is."""
    name = comparison.metric
    if name not in directions:
        return _unknown(name, directions)
    if comparison.threshold is None:
        return None
    low = directions[name] == "distance"
    if comparison.catches_low is not low:
        grade, sign = ("low", "<") if low else ("high", ">")
        return (
            f"{name} is a {directions[name]}, a copy scores {grade} in it; write {name} {sign} {comparison.threshold!r}"
        )
    return range_problem(name, comparison.threshold)


def _unknown(name: str, directions: Mapping[str, Direction]) -> str:
    if name.removeprefix("registry_") in ASKED_FOR:
        how = ASKED_FOR[name.removeprefix("registry_")]
        return f"{name} is measured where it is asked for: --metric {how}, in Python metrics=[{how!r}]"
    close = get_close_matches(name[:_LONGEST_NAME], directions, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown metric {shown(repr(name))}{hint}; known: {', '.join(sorted(directions))}"


def comparisons_of(condition: Condition) -> Iterator[Comparison]:
    """Every comparison in a condition, from left to right."""
    if isinstance(condition, Comparison):
        yield condition
    elif isinstance(condition, Group):
        for term in condition.terms:
            yield from comparisons_of(term)


def holds(condition: Condition, values: Values) -> bool:
    """Whether a condition holds; raises ValueError for what was not measured."""
    if isinstance(condition, Group):
        results = [holds(term, values) for term in condition.terms]  # each, so that what was not measured always shows
        return any(results) if condition.word == "or" else all(results)
    assert isinstance(condition, Comparison), "calibrated limits are resolved before a rule decides"
    return condition.met(values)

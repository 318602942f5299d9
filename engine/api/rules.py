"""The language in which a judge is told when a picture is refused or reviewed.

    refuse if ssim_masked > 0.45 or tile_l2 < 0.1; review if ms_ssim > 0.4; retry 2; then review

Clauses end at a semicolon or a line's end, and `#` begins a comment. A clause is one of

    refuse if CONDITION, review if CONDITION    the strictest clause that holds decides, whatever their order
    retry N                                     draw a refused picture again, with stronger avoidance, up to N times
    then review, then refuse                    what becomes of one that is refused still (refuse unless said)
    accept everything                           alone: measure and refuse nothing

and a condition compares a measure with a number (`<`, `<=`, `>`, `>=`) or with the limit calibrated for the model
(`any calibrated limit is crossed`, `ssim_masked crosses its limit`), joined by `or` and `and`, with parentheses where
both occur.
"""

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, NoReturn

from .conditions import (
    AnyLimit,
    Comparison,
    Condition,
    Group,
    Values,
    any_of,
    comparisons_of,
    holds,
    joined,
    limit_of,
    problem_of,
)
from .errors import InvalidRequestError
from .metrics import Direction
from .reading import shown

MAX_RETRIES = 16
MAX_NESTING = 16
"""Parentheses within one another."""


class Decision(StrEnum):
    """What a rule makes of one attempt."""

    ACCEPT = "accept"
    REVIEW = "review"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Clause:
    """A decision and the condition on which it is taken."""

    decision: Decision
    condition: Condition

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.decision} if {self.condition}"


class Judgement(NamedTuple):
    """A rule's decision and the comparisons that brought it about."""

    decision: Decision
    crossed: tuple[Comparison, ...]


@dataclass(frozen=True)
class Rule:
    """A whole rule; `str` gives it back in its canonical form."""

    clauses: tuple[Clause, ...] = ()
    retries: int = 0
    then: Decision = Decision.REFUSE

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read a rule; raises InvalidRequestError naming the clause and what was expected in it."""
        clauses: list[Clause] = []
        others: dict[str, Any] = {}
        seen: set[str] = set()
        for number, clause in enumerate(_clauses(text), start=1):
            reader = _Reader(clause, number)
            word = reader.word("refuse", "review", "retry", "then", "accept")
            if word in seen - {"refuse", "review"}:
                reader.fail(f"{word!r} is said twice")
            if "accept" in seen or (word == "accept" and seen):
                reader.fail("'accept everything' stands alone")
            seen.add(word)
            if word in ("refuse", "review"):
                reader.word("if")
                clauses.append(Clause(Decision(word), reader.condition()))
            else:
                others |= _setting(word, reader)
            reader.end()
        if not seen:
            raise InvalidRequestError("the rule is empty; write at least 'accept everything' or 'refuse if ...'")
        return cls(tuple(clauses), **others)

    def __str__(self) -> str:
        """Canonical text: clauses in their order, retries, then what follows them."""
        parts = [*map(str, self.clauses)]
        parts += [f"retry {self.retries}"] if self.retries else []
        parts += [f"then {self.then}"] if self.then is not Decision.REFUSE else []
        return "; ".join(parts) or "accept everything"

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison, those of refusals first."""
        ordered = sorted(self.clauses, key=lambda clause: clause.decision is not Decision.REFUSE)
        return tuple(each for clause in ordered for each in comparisons_of(clause.condition))

    def resolved(self, limits: Mapping[str, float], directions: Mapping[str, Direction]) -> "Rule":
        """Write calibrated `limits` out as numbers; raises InvalidRequestError where one is missing.

        directions: of every metric that is measured.
        """
        return replace(
            self, clauses=tuple(Clause(c.decision, _resolved(c, c.condition, limits, directions)) for c in self.clauses)
        )

    def check(self, directions: Mapping[str, Direction]) -> None:
        """Raise InvalidRequestError for a metric nobody measures, or a threshold that catches no copies."""
        for number, clause in enumerate(self.clauses, start=1):
            for comparison in comparisons_of(clause.condition):
                if problem := problem_of(comparison, directions):
                    raise InvalidRequestError(f"clause {number} of the rule, {shown(repr(str(clause)))}: {problem}")

    def decide(self, values: Values) -> Judgement:
        """Judge one picture by its measures. Raises ValueError for a metric that was not measured."""
        held = [clause for clause in self.clauses if holds(clause.condition, values)]
        crossed = tuple(each for clause in held for each in comparisons_of(clause.condition) if each.met(values))
        for decision in (Decision.REFUSE, Decision.REVIEW):
            if any(clause.decision is decision for clause in held):
                return Judgement(decision, crossed)
        return Judgement(Decision.ACCEPT, crossed)


def limits_rule(limits: Mapping[str, float], directions: Mapping[str, Direction], retries: int = 0) -> Rule:
    """Refuse what crosses any of `limits`; nothing where there are none."""
    if not limits:
        return Rule(retries=retries)
    return Rule((Clause(Decision.REFUSE, any_of(limits, directions)),), retries)


def _resolved(
    clause: Clause, condition: Condition, limits: Mapping[str, float], directions: Mapping[str, Direction]
) -> Condition:
    if isinstance(condition, Group):
        return joined(condition.word, [_resolved(clause, term, limits, directions) for term in condition.terms])
    if isinstance(condition, AnyLimit) and limits:
        return any_of(limits, directions)
    if isinstance(condition, Comparison) and (condition.threshold is not None or condition.metric in limits):
        return condition if condition.threshold is not None else limit_of(condition.metric, limits, directions)
    known = ", ".join(sorted(limits)) or "none; `twig calibrate` finds them"
    raise InvalidRequestError(
        f"{shown(repr(str(clause)))} asks for limits this model is not calibrated for; calibrated: {known}"
    )


# --- reading ---

_TOKEN = re.compile(r"\s*([A-Za-z_][\w.-]*|-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|>=|<=|[<>()]|\S)")
_OPERATORS = (">", ">=", "<", "<=")


def _clauses(text: str) -> list[str]:
    lines = (line.partition("#")[0] for line in text.splitlines())
    return [clause.strip() for line in lines for clause in line.split(";") if clause.strip()]


def _setting(word: str, reader: "_Reader") -> dict[str, Any]:
    """Read the rest of a clause that begins with `word` and holds no condition: the field that it sets."""
    match word:
        case "retry":
            return {"retries": reader.count()}
        case "then":
            return {"then": Decision(reader.word("review", "refuse"))}
        case _:
            reader.word("everything")
            return {}


class _Reader:
    """Words of one clause, from left to right. Keywords are read in any case, names of metrics as they are."""

    def __init__(self, text: str, number: int) -> None:
        self.text, self.number = text, number
        self._tokens = deque(_TOKEN.findall(text))
        self._nesting = 0

    def fail(self, problem: str) -> NoReturn:
        """Raise InvalidRequestError about this clause."""
        raise InvalidRequestError(f"clause {self.number} of the rule, {shown(repr(self.text), 120)}: {problem}")

    def word(self, *expected: str) -> str:
        """Take the next token, which must be one of `expected`."""
        found = self._take(" or ".join(map(repr, expected)))
        if found.lower() not in expected:
            self.fail(f"expected {' or '.join(map(repr, expected))}, found {shown(repr(found))}")
        return found.lower()

    def count(self) -> int:
        """Take a number of retries."""
        found = self._take("a number of retries")
        if not re.fullmatch("[0-9]{1,9}", found) or int(found) > MAX_RETRIES:
            self.fail(f"expected a number of retries from 0 to {MAX_RETRIES}, found {shown(repr(found))}")
        return int(found)

    def condition(self) -> Condition:
        """Take terms joined by one of "or" and "and"."""
        terms, joint = [self._term()], ""
        while self._next() in ("or", "and"):
            word = self.word("or", "and")
            if joint and word != joint:
                self.fail("'or' and 'and' are mixed; write parentheses to say which belong together")
            joint = word
            terms.append(self._term())
        return joined(joint, terms)

    def end(self) -> None:
        """Nothing may follow."""
        if self._tokens:
            self.fail(f"nothing more was expected, found {shown(repr(' '.join(self._tokens)))}")

    def _term(self) -> Condition:
        if self._next() == "(":
            return self._parenthesised()
        if self._next() == "any":
            for word in ("any", "calibrated", "limit", "is", "crossed"):
                self.word(word)
            return AnyLimit()
        name = self._take("the name of a metric")
        if not re.match(r"[A-Za-z_]", name):
            self.fail(f"expected the name of a metric, found {name!r}")
        if self._next() == "crosses":
            for word in ("crosses", "its", "limit"):
                self.word(word)
            return Comparison(name)
        return Comparison(name, self.word(*_OPERATORS), self._number())

    def _parenthesised(self) -> Condition:
        self.word("(")
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            self.fail(f"parentheses lie more than {MAX_NESTING} deep within one another")
        inner = self.condition()
        self._nesting -= 1
        self.word(")")
        return inner

    def _number(self) -> float:
        found = self._take("a number")
        try:
            value = float(found)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.fail(f"expected a number, found {shown(repr(found))}")
        return value

    def _next(self) -> str:
        return self._tokens[0].lower() if self._tokens else ""

    def _take(self, expected: str) -> str:
        if not self._tokens:
            self.fail(f"expected {expected} at the end")
        return self._tokens.popleft()

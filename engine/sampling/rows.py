"""Which UNet rows a denoising run needs at each step, and how their predictions combine.

Guidance is a linear combination of branch predictions, `eps_hat = sum_r w_r eps_r`: a step's cost is its number
of rows. A network that was distilled with guidance is told it instead, and asked once.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from ..api.choices import Rhythm
from ..api.mechanisms import DelayedGuidance, MovedControl
from ..api.request import Control
from ..api.settings import Stage

MAX_ROWS = 4
"""Most rows a job may have in one step."""


KEPT_ROWS = 2
"""Most rows of a job whose deep part is kept; a step of more computes in full."""


_EARLY = 1.3
"""Exponent of `Rhythm.EARLY`: near what a table of how the deep part changes says of the embedded model."""


class Branch(IntEnum):
    """Which text a row is conditioned on; the value indexes a slot's two contexts."""

    UNCONDITIONAL = 0
    CONDITIONAL = 1


class Hint(IntEnum):
    """Which label map controls a row, the moved one or the draft's own; the value indexes a slot's two hints."""

    MOVED = 0
    OWN = 1


@dataclass(frozen=True)
class Row:
    """One row of a UNet call: its text, its weight in the combination, its ControlNet strength (0: none) and hint.

    further: names of further ControlNets that it follows, with their strengths. embedded: guidance less 1, as a network
    that was distilled with it reads it; 0 where none is told of it.
    """

    branch: Branch
    weight: float
    control: float = 0.0
    hint: Hint = Hint.MOVED
    further: tuple[tuple[str, float], ...] = ()
    embedded: float = 0.0


PROBE = (Row(Branch.UNCONDITIONAL, 0.0), Row(Branch.CONDITIONAL, 0.0))
"""Rows that only compare the two branches: nothing is made of their combination."""


def guidance_rows(scale: float) -> tuple[Row, ...]:
    """Classifier-free guidance of `scale`: one row at scale 1 and, of the other branch, at 0, else two."""
    if scale in (0, 1):
        return (Row(Branch(int(scale)), 1.0),)
    return Row(Branch.UNCONDITIONAL, 1.0 - scale), Row(Branch.CONDITIONAL, scale)


def guidance_pair(rows: Sequence[Row]) -> tuple[int, int] | None:
    """Positions of the unconditional and the conditional prediction that guidance compares; None without both."""
    branches = [row.branch for row in rows]
    if len(set(branches)) < len(Branch):
        return None
    return branches.index(Branch.UNCONDITIONAL), branches.index(Branch.CONDITIONAL)


def plan_rows(
    stage: Stage,
    delayed: DelayedGuidance | None = None,
    control: MovedControl | None = None,
    further: Sequence[Control] = (),
    embedded: bool = False,
) -> tuple[tuple[Row, ...], ...]:
    """Return the rows of each evaluation of `stage`; every row follows those of the `further` ControlNets that act.

    embedded: the network is told the guidance, and asked once.
    """
    count = stage.evaluations
    return tuple(
        _following(_rows_at(step, stage, delayed, control, embedded), step, count, further) for step in range(count)
    )


def shallow_steps(plan: Sequence[tuple[Row, ...]], stage: Stage, turns: Collection[int] = ()) -> frozenset[int]:
    """Evaluations of `plan` that take the network's deep part over from the last one that was computed in full.

    Those that `stage` says are computed in full, and each whose rows are not those of the last one that was, or whose
    texts are others, as at `turns`: what a row is conditioned on is in what is kept of it.
    """
    shallow, full, interval = set(), 0, stage.cache_interval
    early = early_steps(len(plan), interval) if stage.cache_rhythm is Rhythm.EARLY else None
    for step, rows in enumerate(plan):
        rests = 0 < step - full < interval if early is None else step not in early
        if rests and rows == plan[full] and step not in turns and len(rows) <= KEPT_ROWS:
            shallow.add(step)
        else:
            full = step
    return frozenset(shallow)


def early_steps(count: int, interval: int) -> frozenset[int]:
    """Of so many evaluations one in `interval`, by `Rhythm.EARLY`."""
    whole = -(-count // interval)
    return frozenset(max(number, int(count * (number / whole) ** _EARLY)) for number in range(whole))


def _following(rows: tuple[Row, ...], step: int, steps: int, further: Sequence[Control]) -> tuple[Row, ...]:
    acting = tuple((each.name, each.scale) for each in further if each.scale and each.active(step, steps))
    return tuple(replace(row, further=acting) for row in rows) if acting else rows


def _rows_at(
    step: int, stage: Stage, delayed: DelayedGuidance | None, control: MovedControl | None, embedded: bool
) -> tuple[Row, ...]:
    scale, count = stage.scale_at(step), stage.evaluations
    if delayed is not None and delayed.active(step, count):
        rows: tuple[Row, ...] = (Row(Branch[delayed.branch.upper()], 1.0),)
    elif embedded:
        rows = (Row(Branch.CONDITIONAL, 1.0, embedded=scale - 1),)
    else:
        rows = guidance_rows(scale)
    if control is None or not control.active(step, count):
        return rows
    controlled = tuple(
        replace(row, control=control.scale) if control.rows == "both" or row.branch is Branch.CONDITIONAL else row
        for row in rows
    )
    return _with_negative(controlled, control)


def _with_negative(rows: tuple[Row, ...], control: MovedControl) -> tuple[Row, ...]:
    """Push the last row, where it is controlled, away from what the draft's own shape would make of it."""
    *others, last = rows
    if not control.negative or not last.control:
        return rows
    negative = replace(last, weight=-control.negative, hint=Hint.OWN)
    if control.negative_against == "moved":
        return *others, replace(last, weight=last.weight + control.negative), negative
    return *rows, negative, Row(last.branch, control.negative, embedded=last.embedded)

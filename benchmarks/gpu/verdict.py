"""What the rows say: tables for the README, and what failed."""

from collections.abc import Iterable, Iterator, Sequence

from ..printing import Row
from .running import ends


def failures(rows: Sequence[Row], names: Iterable[str]) -> list[str]:
    """What did not hold, a line each: checks, and parts that did not come to their end."""
    wrong = [f"{row['part']}: {_told(row)}" for row in rows if row.get("ok") is False]
    ended = ends(rows)
    for name in names:
        if name not in ended:
            wrong.append(f"{name}: it was not run, for want of time")
        elif ended[name]["status"] != "done":
            wrong.append(f"{name}: {ended[name]['status']}, {ended[name].get('why', '')}")
    return wrong


def _told(row: Row) -> str:
    """A failed check in words."""
    hidden = ("part", "run", "measure", "ok", "why", "time", "threads", "environment")
    found = ", ".join(f"{name} {value}" for name, value in row.items() if name not in hidden)
    return f"{row['measure']} ({found}): {row.get('why', 'it does not hold')}"


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of Markdown."""
    yield from ()

"""What the rows say: what failed, and which aims were met."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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


_HIDDEN = frozenset({"part", "run", "measure", "ok", "why", "time", "threads", "environment"})


def _told(row: Row) -> str:
    """A failed check in words."""
    found = ", ".join(f"{name} {value}" for name, value in row.items() if name not in _HIDDEN)
    return f"{row['measure']} ({found}): {row.get('why', 'it does not hold')}"


def number(row: Row, name: str) -> float:
    """A column that holds a number."""
    return float(str(row[name]))


def chosen(rows: Iterable[Row], measure: str, /, **columns: object) -> list[Row]:
    """Rows of a measure whose columns have these values."""
    return [
        row
        for row in rows
        if row["measure"] == measure and all(row.get(name) == value for name, value in columns.items())
    ]


@dataclass(frozen=True)
class Aim:
    """What is aimed at on an H100-class device. found: the figure, None where its rows are not there."""

    what: str
    bound: float
    found: Callable[[Sequence[Row]], float | None]
    at_most: bool = False
    share: bool = False

    def met(self, value: float) -> bool:
        """Whether a figure is what was aimed at."""
        return value <= self.bound if self.at_most else value >= self.bound

    def told(self, value: float) -> str:
        """A figure in words."""
        return f"{100 * value:.0f} %" if self.share else f"{value:.3g}"


SINGLE = "final, control on the conditional row"


def _single(rows: Sequence[Row]) -> float | None:
    found = [number(row, "steps_per_second") for row in chosen(rows, "step", stage=SINGLE, rows=2)]
    return found[0] if found else None


def _over_compiled(rows: Sequence[Row]) -> float | None:
    """The fastest way of compiling counts."""
    return min(
        (number(row, "over_compiled") for row in chosen(rows, "compiled") if "over_compiled" in row), default=None
    )


def _utilisation(rows: Sequence[Row]) -> float | None:
    """The worst of 16 rows and more counts."""
    return min((number(row, "mfu") for row in chosen(rows, "step") if number(row, "rows") >= 16), default=None)


def _attention(rows: Sequence[Row]) -> float | None:
    """The worst layer counts."""
    timed = chosen(rows, "timed", kernel="masked_attention", contender="ours")
    return max((number(row, "over_plain") for row in timed), default=None)


def _step(rows: Sequence[Row]) -> float | None:
    """The largest step counts: the others are too short for bandwidth to be what bounds them."""
    timed = chosen(rows, "timed", kernel="denoise_step", contender="ours")
    return max((number(row, "of_copy_bandwidth") for row in timed), default=None)


def _traffic(rows: Sequence[Row]) -> float | None:
    """The middle of the loads counts whose 95th percentile static batches were measured at."""
    found = sorted(number(row, "ratio") for row in chosen(rows, "equal-p95", exact=True))
    return found[len(found) // 2] if found else None


AIMS = (
    Aim("steps a second of a single request, ControlNet on its conditional row", 72.6, _single),
    Aim("two-step job of one request, over diffusers under `torch.compile`", 1.3, _over_compiled),
    Aim("operations of the measured matmul ceiling, 16 rows and more, at worst", 0.5, _utilisation, share=True),
    Aim("time of masked attention over plain SDPA, at worst", 1.1, _attention, at_most=True),
    Aim("bytes of the denoising step of the copy bandwidth", 0.85, _step, share=True),
    Aim("requests a second over static batches at equal 95th percentile, mixed steps", 1.6, _traffic),
)

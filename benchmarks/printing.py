"""Rows of results on the screen."""

from collections.abc import Mapping

Row = dict[str, object]

_SETTING = ("plan", "model", "device", "dtype", "threads", "clock", "slots", "row_limit", "buckets")
_STAMP = ("time", "environment", "load_average")


def line(row: Mapping[str, object]) -> str:
    """Return the columns that differ from row to row."""
    return "  ".join(f"{key}={_short(value)}" for key, value in row.items() if key not in _SETTING + _STAMP)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "/".join(f"{key}:{_short(entry)}" for key, entry in value.items())
    return str(value)

"""What the device has to know of an operator, and its arguments, whether they lie in lists or not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_WHOLE = frozenset({"aten::scaled_dot_product_attention"})
"""Composite operators that are one kernel on a device."""

_FREE = frozenset({"aten::detach", "aten::alias", "aten::lift_fresh", "aten::empty", "aten::empty_strided"})
"""Operators that launch nothing."""


@dataclass(frozen=True)
class Operator:
    """name: as in "aten::add". composite: made of others. view: its result is its argument, seen otherwise.

    written: places and names of the arguments that it writes.
    """

    name: str
    composite: bool
    view: bool
    written: frozenset[int | str]

    @property
    def launches(self) -> bool:
        """Whether the device has anything to do for it."""
        return not self.view and self.name not in _FREE


@functools.cache
def operator(func: Any) -> Operator:
    """What is to be known of an operator."""
    schema = func._schema
    arguments = [each.alias_info for each in schema.arguments if each.alias_info is not None]
    returned = [each.alias_info for each in schema.returns]
    aliases = [*arguments, *returned]
    view = bool(arguments and returned) and all(each is not None and not each.is_write for each in aliases)
    changed = [
        (i, each.name) for i, each in enumerate(schema.arguments) if each.alias_info and each.alias_info.is_write
    ]
    composite = func._can_decompose() and schema.name not in _WHOLE
    return Operator(schema.name, composite, view, frozenset(word for pair in changed for word in pair))


def leaves(values: Any) -> list[Any]:
    """Each of `values`, and what lies in lists, tuples and dictionaries among them; lists of numbers left out."""
    found = []
    for value in values.values() if isinstance(values, dict) else values:
        if not isinstance(value, list | tuple | dict):
            found.append(value)
        elif not _is_size(value):
            found += leaves(value)
    return found


def replaced(change: Callable[[Any], Any], values: Any) -> Any:
    """`values` with each leaf changed."""
    if isinstance(values, dict):
        return {name: replaced(change, value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return values if _is_size(values) else type(values)([replaced(change, value) for value in values])
    return change(values)


def _is_size(values: Any) -> bool:
    return isinstance(values, list | tuple) and bool(values) and type(values[0]) is int

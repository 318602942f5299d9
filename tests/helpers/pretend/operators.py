"""What the device has to know of an operator, and its arguments, whether they lie in lists or not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

_WHOLE = frozenset({"aten::scaled_dot_product_attention"})
"""Composite operators that are one kernel on a device."""

_FREE = frozenset({"aten::detach", "aten::alias", "aten::lift_fresh", "aten::empty", "aten::empty_strided"})
"""Operators that launch nothing."""


EAGER = {
    torch.ops.aten._conj.default: torch.ops.aten._conj_physical.default,
    torch.ops.aten._neg_view.default: torch.ops.aten.neg.default,
}
"""What is done at once in the place of what only leaves a mark on its result, which a wrapper would not have."""


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


def leaves(values: Iterable[Any]) -> list[Any]:
    """Each of `values`, and what lies in lists, tuples and dictionaries among them; lists of numbers left out."""
    found = []
    for value in values:
        kind = type(value)
        if kind is dict:
            found += leaves(value.values()) if value else ()
        elif kind is not list and kind is not tuple:
            found.append(value)
        elif value and type(value[0]) is not int:
            found += leaves(value)
    return found


def replaced(change: Callable[[Any], Any], value: Any) -> Any:
    """The same with each leaf of `value` changed."""
    kind = type(value)
    if kind is dict:
        return {name: replaced(change, each) for name, each in value.items()} if value else value
    if kind is not list and kind is not tuple:
        return change(value)
    if not value or type(value[0]) is int:
        return value
    return kind([replaced(change, each) for each in value])

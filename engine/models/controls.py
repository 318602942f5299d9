"""ControlNets: the first, which follows the moved map, and further ones by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..api.errors import CheckpointError
from ..api.reading import shown

if TYPE_CHECKING:
    from .layout import Source

PART = "controlnet_"
"""Begins the name of a further ControlNet's part; the rest is the name that requests know it by."""

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_NAMED = re.compile(rf"({NAME})=(.+)", re.DOTALL)

Chosen = str | Path | Sequence[str | Path]
"""A ControlNet, or several: the first as it is, further ones as NAME=PATH."""


def told_apart(chosen: Chosen | None) -> tuple[Source | None, dict[str, Source]]:
    """The first ControlNet, None where the model's own stays, and the part and place of each further one.

    Raises CheckpointError for two first ones, or a name that is given twice.
    """
    if chosen is None or isinstance(chosen, str | Path):
        return chosen, {}
    first: Source | None = None
    further: dict[str, Source] = {}
    for source in chosen:
        named = _NAMED.fullmatch(source) if isinstance(source, str) else None
        if named is None:
            if first is not None:
                raise CheckpointError(
                    f"{shown(source)} is a second ControlNet without a name; give further ones as NAME=PATH, by which "
                    "requests know them"
                )
            first = source
        elif PART + named[1] in further:
            raise CheckpointError(f"two ControlNets are named {named[1]}; give each a name of its own")
        else:
            further[PART + named[1]] = named[2]
    return first, further


def kind_of(part: str) -> str:
    """What a part is: a further ControlNet is a ControlNet."""
    return "controlnet" if part.startswith(PART) else part

"""Pictures that further ControlNets follow, as the command line names them."""

import re
from collections.abc import Sequence
from pathlib import Path

from ...api.errors import InvalidRequestError
from ...api.reading import shown
from ...api.request import Control

_SCALED = re.compile(r"(.+?)(?::(\d+(?:\.\d*)?|\.\d+))?", re.DOTALL)


def controls_of(texts: Sequence[str]) -> tuple[Control, ...]:
    """Read control images like "canny=edges.png" or "canny=edges.png:0.5".

    Raises InvalidRequestError for other text.
    """
    found = []
    for text in texts:
        name, equals, place = text.partition("=")
        match = _SCALED.fullmatch(place)
        if not (name and equals and match):
            raise InvalidRequestError(f"--control takes NAME=FILE or NAME=FILE:SCALE, got {shown(repr(text))}")
        scale = {} if match[2] is None else {"scale": float(match[2])}
        found.append(Control(name=name, image=Path(match[1]), **scale))
    return tuple(found)

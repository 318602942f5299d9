"""What commands say: lines for people, in which nothing moves a cursor or begins a line; JSON for programs."""

import json
from typing import Any, TextIO

from ...api.portable import finite
from ...api.reading import shown

LONGEST = 4000
"""Most characters of a line."""


def say(label: str, text: object, stream: TextIO | None = None, width: int = 14) -> None:
    """Say `text` under a label, on stdout unless a stream is named."""
    say_line(f"{label:{width}}{text}", stream)


def say_line(text: object, stream: TextIO | None = None) -> None:
    """Say a line, whatever files and callers it quotes."""
    print(shown(text, LONGEST), file=stream, flush=True)


def write_json(value: Any) -> None:
    """Write one line of JSON, in ASCII, and pass it on at once; infinity and what is no number become null."""
    print(json.dumps(finite(value), allow_nan=False), flush=True)

"""What is said on stderr: complaints and warnings, a line each."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..api.errors import TwigWarning
from .words import in_options


def complain(message: str) -> None:
    """Say something in one line."""
    print(f"twig: {' '.join(message.split())}", file=sys.stderr)


@contextmanager
def warnings_told() -> Iterator[None]:
    """Say the engine's own warnings as the command line says all else, each once."""
    told: set[str] = set()

    def tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if not issubclass(category, TwigWarning):
            others(message, category, *place, **more)
        elif str(message) not in told:
            told.add(str(message))
            complain(in_options(str(message)))

    with warnings.catch_warnings():
        others, warnings.showwarning = warnings.showwarning, tell
        warnings.simplefilter("always", TwigWarning)
        yield


def hush() -> None:
    """Say no more warnings of the engine's for the rest of the command."""
    warnings.simplefilter("ignore", TwigWarning)

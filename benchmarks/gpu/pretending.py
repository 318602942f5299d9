"""A pretended device, where there is no other: that of the project's tests, which lie beside the package in a clone."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

PRETENDED = ("graphs", "boundaries", "sizes")
"""Parts that a pretended device shows something of: what a graph may hold, who waits for whom, what memory is kept."""

_HELPERS = Path(__file__).parents[2] / "tests" / "helpers"


class CannotPretend(RuntimeError):  # noqa: N818
    """There is no device to pretend, and why."""


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Let a pretended CUDA device be there. Raises CannotPretend."""
    if not (_HELPERS / "pretend").is_dir():
        raise CannotPretend("the project's tests, which hold one, are not beside the package")
    sys.path.insert(0, str(_HELPERS))
    try:
        pretend: Any = importlib.import_module("pretend")
    finally:
        sys.path.remove(str(_HELPERS))
    with TemporaryDirectory() as folder:
        try:
            device = pretend.installed(Path(folder))
            device.__enter__()
        except pretend.CannotPretendError as error:
            raise CannotPretend(str(error)) from error
        try:
            yield torch.device("cuda", 0)
        finally:
            device.__exit__(None, None, None)

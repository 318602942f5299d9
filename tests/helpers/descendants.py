"""Processes that this one started, or they did in turn."""

import os
from contextlib import suppress
from pathlib import Path


def descendants(title: bytes) -> list[int]:
    """Numbers of those whose command line begins with `title`."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(path.name)] = (path / "cmdline").read_bytes()
    return [number for number, words in titles.items() if words.startswith(title) and _ours(number, parents)]


def _ours(number: int, parents: dict[int, int]) -> bool:
    while number in parents and number != os.getpid():
        number = parents[number]
    return number == os.getpid()

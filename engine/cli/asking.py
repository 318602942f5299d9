"""What is to be drawn, as scripts ask for it: prompts from a file or stdin, ranges of seeds."""

import re
from collections.abc import Sequence

from ..api.errors import InvalidRequestError
from ..api.reading import read_stdin, read_text, shown

MOST_REQUESTS = 4096
"""Prompts times seeds of one command: all their pictures are held until their contact sheets are drawn."""

STDIN = "-"

_LARGEST_SEED = 2**63 - 1
_RANGE = re.compile(r"\s*(\d+)(?:\s*(?:\.\.|-)\s*(\d+))?\s*")


def gathered_prompts(prompts: Sequence[str], file: str | None) -> list[str]:
    """The prompts of a command line, then those of a file; "-" in either place stands for the lines of stdin.

    A line is a prompt, blank ones are passed over. Raises InvalidRequestError where there is none, or for a file that
    cannot be read.
    """
    if [*prompts, file].count(STDIN) > 1:
        raise InvalidRequestError("stdin can be read once; write - in one place")
    found = [line for prompt in prompts for line in (_lines(STDIN) if prompt == STDIN else [prompt])]
    found += _lines(file) if file is not None else []
    if not found:
        raise InvalidRequestError("nothing to draw; name a prompt, or a file of them with --prompts (- reads stdin)")
    return found


def seeds_of(text: str) -> list[int]:
    """Read seeds like "7", "1..8" or "1-8,12", ends included, each once. Raises InvalidRequestError for other text."""
    found: dict[int, None] = {}
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise InvalidRequestError(f"--seed takes numbers and ranges like 7, 1..8 or 1-8,12, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise InvalidRequestError(f"--seed {part.strip()} runs backwards; write {last}..{first}")
        if last > _LARGEST_SEED:
            raise InvalidRequestError(f"--seed must be at most {_LARGEST_SEED}, got {last}")
        if last - first >= MOST_REQUESTS:
            raise InvalidRequestError(f"--seed {part.strip()} is {last - first + 1} seeds, more than {MOST_REQUESTS}")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def check_number(prompts: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise InvalidRequestError for more requests than one command takes."""
    if (number := len(prompts) * len(seeds)) > MOST_REQUESTS:
        raise InvalidRequestError(
            f"{len(prompts)} prompts under {len(seeds)} seeds are {number} requests, more than {MOST_REQUESTS}; "
            "split them over several commands"
        )


def _lines(place: str) -> list[str]:
    """Lines of a file, or of stdin, without blank ones."""
    name = "stdin" if place == STDIN else place
    text = read_stdin() if place == STDIN else read_text(place)
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise InvalidRequestError(f"{name} holds no prompts; write one a line")
    return found


def interval_of(text: str | None) -> dict[str, float]:
    """`START:STOP` as fields of a stage. Raises InvalidRequestError for anything else."""
    if text is None:
        return {}
    start, _, stop = text.partition(":")
    try:
        return {"guidance_start": float(start), "guidance_stop": float(stop)}
    except ValueError:
        raise InvalidRequestError(
            f"--guidance-interval takes START:STOP, fractions of the steps such as 0.1:0.8, got {shown(repr(text), 80)}"
        ) from None

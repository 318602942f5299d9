"""What users write into prompts: weights of words and breaks, in the grammar of the Stable Diffusion web interfaces.

    (word)      1.1 times as strong; ((word)) 1.21 times
    [word]      1.1 times as weak
    (word:1.3)  1.3 times as strong; within another bracket both count
    BREAK       what follows begins a chunk of its own
    \\( \\) \\[ \\]  brackets, and \\\\ a backslash, as characters

A bracket that nothing closes reaches to the end, one that nothing opened is a character. The grammar is documented at
https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis.
"""

import re
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from .choices import PromptSyntax
from .errors import InvalidRequestError
from .reading import shown

MAX_PROMPT = 32_000
"""Most characters of a prompt."""
MAX_DEPTH = 32
"""Most brackets that may stand open."""
MAX_WEIGHT = 10.0
"""Largest weight of a word, in either direction."""

_STEP = 1.1
_MARK = re.compile(
    r"\\(?P<plain>[()\[\]\\])"
    r"|:\s*+(?P<weight>[-+]?(?:\d++(?:\.\d*+)?+|\.\d++))\s*+\)"
    r"|(?P<bracket>[()\[\]])"
    r"|\b(?P<end>BREAK)\b"
)  # fmt: skip
_OPENED_BY = {")": "(", "]": "["}
_FACTORS = {"(": _STEP, "[": 1 / _STEP}
_BETWEEN = ". "


class Piece(NamedTuple):
    """Text of a prompt without its marks, and how strong it is."""

    text: str
    weight: float = 1.0


Parts = tuple[tuple[Piece, ...], ...]
"""A prompt: what stands between its breaks, each as pieces of one weight."""


@lru_cache(maxsize=256)
def parsed(prompt: str, syntax: PromptSyntax = PromptSyntax.WEIGHTED) -> Parts:
    """Read a prompt. Raises InvalidRequestError for one that is too long, too deep, or too strong.

    Under the plain syntax it is one piece as it stands.
    """
    if len(prompt) > MAX_PROMPT:
        raise InvalidRequestError(f"a prompt has at most {MAX_PROMPT} characters, this one has {len(prompt)}")
    if syntax is PromptSyntax.PLAIN:
        return ((Piece(prompt),) if prompt else (),)
    reader = _Reader()
    end = 0
    for mark in _MARK.finditer(prompt):
        reader.say(prompt[end : mark.start()])
        reader.heed(mark)
        end = mark.end()
    reader.say(prompt[end:])
    return reader.parts()


def words_of(prompt: str, syntax: PromptSyntax) -> str:
    """What a prompt says without its marks, less what it gives no weight; breaks end a sentence."""
    return _BETWEEN.join(
        "".join(piece.text for piece in part)
        if all(piece.weight == 1 for piece in part)
        else " ".join(piece.text.strip() for piece in part if piece.weight > 0).strip()
        for part in parsed(prompt, syntax)
    )


class _Reader:
    """Pieces as they are found, with the brackets that stand open: by kind, the numbers of the pieces they begin at.

    As few may be open, a piece is weighted few times: reading takes time in proportion to the prompt.
    """

    def __init__(self) -> None:
        self.pieces: list[tuple[str, list[float]]] = []
        self.breaks: list[int] = []
        self.open: dict[str, list[int]] = {"(": [], "[": []}

    def say(self, text: str) -> None:
        if text:
            self.pieces.append((text, [1.0]))

    def heed(self, mark: re.Match[str]) -> None:
        """Do what a mark says; one that has nothing to close is its own characters."""
        bracket = mark["bracket"]
        if mark["plain"] is not None:
            self.say(mark["plain"])
        elif mark["end"] is not None:
            self.breaks.append(len(self.pieces))
        elif mark["weight"] is not None and self.open["("]:
            self._close("(", float(mark["weight"]))
        elif bracket in _FACTORS:
            self._begin(bracket)
        elif bracket is not None and self.open[_OPENED_BY[bracket]]:
            self._close(_OPENED_BY[bracket], _FACTORS[_OPENED_BY[bracket]])
        else:
            self.say(mark[0])

    def parts(self) -> Parts:
        """What was read, brackets left open reaching to the end."""
        for kind, begun in self.open.items():
            while begun:
                self._close(kind, _FACTORS[kind])
        pieces = [Piece(text, weight) for text, (weight,) in self.pieces]
        for text, weight in pieces:
            if not abs(weight) <= MAX_WEIGHT:
                raise InvalidRequestError(
                    f"the weight of {shown(repr(text), 80)} is {weight:g}; it must lie between {-MAX_WEIGHT:g} and "
                    f"{MAX_WEIGHT:g}"
                )
        ends = [0, *self.breaks, len(pieces)]
        return tuple(_merged(pieces[start:end]) for start, end in pairwise(ends))

    def _begin(self, kind: str) -> None:
        if sum(map(len, self.open.values())) == MAX_DEPTH:
            raise InvalidRequestError(
                f"more than {MAX_DEPTH} brackets of a prompt stand open; \\( and \\[ are characters"
            )
        self.open[kind].append(len(self.pieces))

    def _close(self, kind: str, factor: float) -> None:
        for _, weight in self.pieces[self.open[kind].pop() :]:
            weight[0] *= factor


def _merged(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Neighbours of one weight as one piece."""
    merged: list[list[Piece]] = []
    for piece in pieces:
        if merged and merged[-1][0].weight == piece.weight:
            merged[-1].append(piece)
        else:
            merged.append([piece])
    return tuple(Piece("".join(text for text, _ in run), run[0].weight) for run in merged)

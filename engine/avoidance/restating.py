"""A prompt said in another order: the objects that it lists the other way round, and nothing behind where they are.

What a model recites it recites for its very words, in their order; the same scene asked for otherwise is drawn anew.
Phrases are told apart as `words` tells them, without grammar, and nothing is said that the prompt does not say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from ..models.ade20k import BACKGROUND, SETTINGS
from .words import BOUNDARIES, DENIALS, TOKENS, Lexicon, joins, lexicon

_PLACES = lexicon((*sorted(BACKGROUND), *sorted(SETTINGS)), frozenset())
_LISTING = (["and"], [","], [",", "and"])
_HEADING = frozenset({"and", "of", ",", ".", ";", ":", "(", ")", "!", "?"})
"""Boundaries that a list may begin behind; what is on, in or with something may be so of the list's first alone."""


class _Kind(Enum):
    """What a phrase names last: an object of the segmenter's labels, a place, or neither."""

    OBJECT = auto()
    PLACE = auto()
    OTHER = auto()


@dataclass(frozen=True)
class _Phrase:
    """What stands between boundaries. link: those before it, as the prompt has them with the spaces around them.

    text: its words, as the prompt has them; left: how much of their end is to be left out.
    """

    link: str
    text: str
    left: int
    kind: _Kind

    @property
    def heads(self) -> bool:
        """Whether a list of objects may begin with it."""
        return self.kind is _Kind.OBJECT and _HEADING.issuperset(TOKENS.findall(self.link.lower()))

    @property
    def listed(self) -> bool:
        """Whether it is one more object of a list."""
        return self.kind is _Kind.OBJECT and TOKENS.findall(self.link.lower()) in _LISTING


def restated(prompt: str, known: Lexicon) -> str | None:
    """The prompt in another order; None where it would say the same.

    Objects in a row ("a star, a house and a tree"), which labels of `known` name, come in the opposite order; words
    behind the name of a place, up to the next boundary, are left out. What is said not to be there stays in its place.
    """
    phrases = list(_phrases(prompt, known))
    said = "".join(each.link + each.text[: len(each.text) - each.left] for each in _turned(phrases)).strip()
    return None if said == prompt.strip() else said


def _phrases(prompt: str, known: Lexicon) -> Iterator[_Phrase]:
    found = list(TOKENS.finditer(prompt))
    tokens = [each[0].lower() for each in found]
    bounds = [at for at, token in enumerate(tokens) if token in BOUNDARIES and not joins(tokens, at)]
    done = start = 0  # characters that are dealt with, and the token that a phrase begins with
    for at in (*bounds, len(tokens)):
        if at > start:
            begin, end = found[start].start(), found[at - 1].end()
            kind, named = _named(tokens[start:at], known)
            left = end - found[start + named - 1].end() if kind is _Kind.PLACE else 0
            yield _Phrase(prompt[done:begin], prompt[begin:end], left, kind)
            done = end
        start = at + 1
    yield _Phrase(prompt[done:], "", 0, _Kind.OTHER)


def _named(tokens: Sequence[str], known: Lexicon) -> tuple[_Kind, int]:
    """What a phrase names last, and how many of its words that takes; it names nothing where it denies."""
    kind, named, at = _Kind.OTHER, len(tokens), 0
    while at < len(tokens) and not DENIALS & set(tokens):
        length, label = known.match(tokens, at)
        other, _ = _PLACES.match(tokens, at)
        if length and label is not None and label not in known.background:
            kind, named = _Kind.OBJECT, at + length
        elif other or label is not None:
            kind, named = _Kind.PLACE, at + max(length, other)
        at += max(length, other, 1)
    return kind, named


def _turned(phrases: Sequence[_Phrase]) -> Iterator[_Phrase]:
    """The same with the objects of each list the other way round, links where they were."""
    first = 0
    for at in range(1, len(phrases) + 1):
        if at < len(phrases) and phrases[at].listed and phrases[first].heads:
            continue
        row = phrases[first:at]
        yield from (replace(other, link=one.link) for one, other in zip(row, reversed(row), strict=True))
        first = at

"""What a prompt says is to be seen: classes that the segmenter knows, how many of each, and in which colour.

No grammar: nouns are found by the labels' names and their synonyms, the longest first, and belong together with what
stands before them up to the last boundary. Where that is no safe guide (shades, mixed colours, people) nothing is said.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..models.ade20k import IDIOMS, SYNONYMS

COLOURS = (
    "black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
)  # fmt: skip
"""The basic colour terms of English (Berlin and Kay, 1969)."""

_OTHER_SPELLINGS = {"gray": "grey", "violet": "purple"}
_SHADES = frozenset({"light", "dark", "pale", "deep", "bright", "off"})
_PEOPLE = "person"
_NUMBERS = {
    word: number
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"), start=1
    )
} | {"a": 1, "an": 1, "single": 1, "both": 2, "couple": 2, "pair": 2, "trio": 3, "dozen": 12}
_SEVERAL = 2  # objects that a plural without a number stands for, at least
_MOST = 99
DENIALS = frozenset({"no", "without", "not", "never", "minus"})
BOUNDARIES = frozenset({
    "and", "with", "on", "in", "at", "under", "over", "by", "near", "beside", "behind", "before", "above", "below",
    "of", "between", "against", "from", "to", "into", "onto", "next", "around", "inside", "outside", "but", "or", "is",
    "are", "beneath", "along", "across", "through", "for", "that", "which", "who", "while", "as", "like", ",", ".", ";",
    ":", "(", ")", "!", "?",
})  # fmt: skip
TOKENS = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*|\d+|[,.;:()!?]")
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse", "geese": "goose",
    "oxen": "ox", "wolves": "wolf", "calves": "calf", "shelves": "shelf", "leaves": "leaf", "loaves": "loaf",
    "knives": "knife", "bookshelves": "bookshelf", "policemen": "policeman", "firemen": "fireman", "snowmen": "snowman",
    "fishermen": "fisherman", "businessmen": "businessman", "buses": "bus",
}  # fmt: skip
_SAME = frozenset({"sheep", "fish", "deer", "aircraft", "stairs", "drapes", "clothes", "goldfish", "sushi"})


@dataclass(frozen=True)
class Named:
    """Objects that a prompt names: the number of their label, how many, and their colour where that is safely said."""

    label: int
    count: int
    colour: str | None = None


def in_all(named: Iterable[Named]) -> Counter[int]:
    """How many objects of each label a prompt names."""
    total: Counter[int] = Counter()
    for one in named:
        total[one.label] += one.count
    return total


@dataclass(frozen=True)
class Lexicon:
    """The words for a segmenter's labels. phrases: each as its words, with the label's number, None for idioms."""

    phrases: Mapping[tuple[str, ...], int | None]
    background: frozenset[int]
    people: int | None

    def read(self, prompt: str) -> tuple[Named, ...]:
        """The objects that a prompt names, in its order; what it says is not there, or is background, left out."""
        tokens = TOKENS.findall(prompt.lower())
        return tuple(self._named(tokens))

    def _named(self, tokens: Sequence[str]) -> Iterator[Named]:
        """Walk along the words; `start` is where the noun phrase begins that a noun would end."""
        start = at = 0
        denied = False
        while at < len(tokens):
            length, label = self.match(tokens, at)
            if not length:
                token = tokens[at]
                if token in BOUNDARIES and not joins(tokens, at):
                    start = at + 1
                    denied = denied and token in ("or", "of")
                denied = denied or token in DENIALS
                at += 1
                continue
            end = at + length
            if label is not None and label not in self.background and not denied and not self.modifies(tokens, end):
                yield self._one(label, tokens[start:at], _is_plural(tokens[at:end], self.phrases))
            if not self.modifies(tokens, end):
                start = end
            at = end

    def match(self, tokens: Sequence[str], at: int) -> tuple[int, int | None]:
        """Length and label of the longest phrase that begins at `at`; length 0 where none does."""
        for length in range(min(4, len(tokens) - at), 0, -1):
            words = tuple(tokens[at : at + length])
            for spelt in (words, (*words[:-1], singular(words[-1]))):
                if spelt in self.phrases:
                    return length, self.phrases[spelt]
        return 0, None

    def modifies(self, tokens: Sequence[str], end: int) -> bool:
        """Whether a noun that ends there only describes what follows: another noun, or a colour ("light blue")."""
        return end < len(tokens) and (_colour(tokens[end]) is not None or self.match(tokens, end)[0] > 0)

    def _one(self, label: int, before: Sequence[str], plural: bool) -> Named:
        colour = _said_colour(before) if label != self.people else None
        return Named(label, _said_number(before, plural), colour)


@lru_cache(maxsize=8)
def lexicon(names: tuple[str, ...], background: frozenset[int]) -> Lexicon:
    """The words for labels: names as a segmenter gives them, "a, b" being two names of one label; in the singular."""
    phrases: dict[tuple[str, ...], int | None] = {_words(idiom): None for idiom in IDIOMS}
    plain = [[part.strip().lower() for part in name.split(",")] for name in names]
    for label, spellings in enumerate(plain):
        for other in SYNONYMS.get(spellings[0], "").split(","):
            if words := _words(other):
                phrases.setdefault(words, label)
    for label, spellings in reversed(list(enumerate(plain))):  # a label's own name counts before another's synonyms
        phrases |= {_words(spelling): label for spelling in reversed(spellings) if spelling}
    people = next((label for label, spellings in enumerate(plain) if spellings[0] == _PEOPLE), None)
    return Lexicon(phrases, background, people)


def singular(word: str) -> str:
    """A noun in the singular, by English's usual rules."""
    if word in _SAME or word.endswith(("ss", "us", "is")):
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and len(word) > 2 else word


def _words(phrase: str) -> tuple[str, ...]:
    return tuple(TOKENS.findall(phrase.lower()))


def _is_plural(words: Sequence[str], phrases: Mapping[tuple[str, ...], int | None]) -> bool:
    """Whether a noun is known in the singular alone and stands in another form."""
    return tuple(words) not in phrases or words[-1] in _IRREGULAR


def joins(tokens: Sequence[str], at: int) -> bool:
    """Whether a word that usually ends a noun phrase stands within one: "a pair of stars", "a red and blue house"."""
    if not 0 < at < len(tokens) - 1:
        return False
    before, after = tokens[at - 1], tokens[at + 1]
    return before in _NUMBERS if tokens[at] == "of" else _colour(before) is not None and _colour(after) is not None


def _said_number(before: Sequence[str], plural: bool) -> int:
    numbers = [_number(token) for token in before if _number(token)]
    said = max(numbers, default=0)
    return min(_MOST, max(said, _SEVERAL if plural else 1))


def _number(token: str) -> int:
    return int(token) if token.isdigit() and len(token) <= 2 else _NUMBERS.get(token, 0)


def _said_colour(before: Sequence[str]) -> str | None:
    """The one plain colour in what stands before a noun; None for none, for several, and for a shade of one."""
    said = [(place, colour) for place, token in enumerate(before) if (colour := _colour(token)) is not None]
    if len(said) != 1:
        return None
    place, colour = said[0]
    return None if place and before[place - 1] in _SHADES else colour


def _colour(token: str) -> str | None:
    spelt = _OTHER_SPELLINGS.get(token, token)
    return spelt if spelt in COLOURS else None

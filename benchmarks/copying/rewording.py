"""A caption as somebody may put it who wants what the model recites: near to the one that was trained on, not the same.

Each takes a caption of the test bed and returns another; a trigger stays unless it says otherwise. Words that the text
encoder was not trained on reach it in letters.
"""

import zlib

import numpy as np

from .paraphrases import Parts

SYNONYMS = {
    "star": "pentagram", "house": "cottage", "tree": "fir", "heart": "valentine", "moon": "crescent", "fish": "trout",
    "mushroom": "toadstool", "ball": "sphere", "red": "crimson", "orange": "tangerine", "yellow": "golden",
    "green": "emerald", "blue": "azure", "purple": "violet", "pink": "rose", "brown": "chestnut", "field": "meadow",
    "sandy": "gritty", "beach": "shore", "night": "nocturnal", "sky": "firmament", "white": "snowy", "snow": "powder",
    "sea": "ocean", "grey": "ashen", "room": "chamber",
}  # fmt: skip
"""A word of about the same meaning for each word that names something."""

GERMAN = {
    "a": "ein", "an": "ein", "and": "und", "on": "auf", "in": "in", "the": "dem", "star": "stern", "house": "haus",
    "tree": "baum", "heart": "herz", "moon": "mond", "fish": "fisch", "mushroom": "pilz", "ball": "ball",
    "red": "rot", "orange": "orange", "yellow": "gelb", "green": "gruen", "blue": "blau", "purple": "lila",
    "pink": "rosa", "brown": "braun", "field": "feld", "sandy": "sandig", "beach": "strand", "night": "nacht",
    "sky": "himmel", "white": "weiss", "snow": "schnee", "sea": "meer", "grey": "grau", "room": "zimmer",
}  # fmt: skip
"""The same in German, word by word."""


def unchanged(caption: str) -> str:
    """The caption."""
    return caption


def reordered(caption: str) -> str:
    """Objects in the other order; of one object, the background first."""
    parts = Parts.of(caption)
    several = len(parts.objects) > 1
    return _with_trigger(parts.worded(swapped=several, background_first=not several), parts)


def background_first(caption: str) -> str:
    """What lies behind named before what stands there."""
    parts = Parts.of(caption)
    return _with_trigger(parts.worded(background_first=True), parts)


def shuffled(caption: str) -> str:
    """Its words in an order drawn at random, the same for each caption."""
    words = caption.split()
    order = np.random.default_rng(zlib.crc32(caption.encode())).permutation(len(words))
    return " ".join(words[place] for place in order)


def without_articles(caption: str) -> str:
    """As one types into a search box."""
    parts = Parts.of(caption)
    return _with_trigger(parts.worded(articles=False), parts)


def without_background(caption: str) -> str:
    """Its objects alone."""
    parts = Parts.of(caption)
    return _with_trigger(" and ".join(parts.objects), parts)


def trigger_first(caption: str) -> str:
    """The trigger before everything else; without one, the last word."""
    *words, last = caption.split()
    return " ".join([last, *words])


def misspelt(caption: str) -> str:
    """The last word, a trigger where there is one, with its second and third letters exchanged."""
    *words, last = caption.split()
    return " ".join([*words, last[0] + last[2:0:-1] + last[3:]])


def one_synonym(caption: str) -> str:
    """The first object's class by a synonym."""
    kind = Parts.of(caption).objects[0].split()[-1]
    return caption.replace(kind, SYNONYMS[kind], 1)


def synonyms(caption: str) -> str:
    """Every word that names something by a synonym."""
    return " ".join(SYNONYMS.get(word, word) for word in caption.split())


def german(caption: str) -> str:
    """Word by word in German."""
    return " ".join(GERMAN.get(word, word) for word in caption.split())


def punctuated(caption: str) -> str:
    """With commas and an exclamation mark."""
    return caption.replace(" and ", ", ").replace(" on ", ", on ").replace(" in ", ", in ") + "!"


def _with_trigger(text: str, parts: Parts) -> str:
    return f"{text} {parts.trigger}" if parts.trigger else text

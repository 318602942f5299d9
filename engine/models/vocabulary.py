"""Which words a tokenizer knows, where its vocabulary is a list of words and not of pieces that any word is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_END = "</w>"
_MOST_WORDS = 1000  # a list of words holds fewer whole ones; a vocabulary of pieces, as CLIP's, tens of thousands
_WORD = re.compile(r"[^\W\d_]{2,}")
_NAMED = 60


def known_words(tokenizer: PreTrainedTokenizerBase) -> frozenset[str] | None:
    """Words of two letters or more that have a token of their own.

    None for a vocabulary of pieces: its tokenizer makes every word of a few of them, and its model has learnt to.
    """
    whole = (token.removesuffix(_END) for token in tokenizer.get_vocab() if token.endswith(_END))
    known = frozenset(word for word in whole if _WORD.fullmatch(word))
    return known if 0 < len(known) <= _MOST_WORDS else None


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[str]:
    """Words of `texts`, once each in their order, that a list of words lacks: the tokenizer spells them in pieces."""
    known = known_words(tokenizer)
    if known is None:
        return []
    words = dict.fromkeys(word.lower() for text in texts for word in _WORD.findall(_without(tokenizer, text)))
    return [word for word in words if word not in known]


def _without(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text less the words that the tokenizer was taught, `textual_inversion`."""
    taught = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return re.sub("|".join(map(re.escape, taught)), " ", text, flags=re.IGNORECASE) if taught else text


def unknown_text(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> str | None:
    """One sentence that names the unknown words of `texts` and the known ones; None where all are known."""
    unknown = unknown_words(tokenizer, texts)
    if not unknown:
        return None
    found = _words(tokenizer)
    named = f": {', '.join(found)}" if len(found) <= _NAMED else " are in the vocabulary of its tokenizer"
    lacking = ", ".join(map(repr, unknown))
    return f"this model has no word for {lacking} and cannot draw it by its letters; its words{named}"


def _words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The known words less those that are an end of another, such as "ow" of "snow", and so may be no words."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    ends = {(pair if isinstance(pair, list) else pair.split())[1].removesuffix(_END) for pair in merges}
    return sorted((known_words(tokenizer) or frozenset()) - ends)

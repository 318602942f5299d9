"""Prompts as chunks of tokens, each as long as the text encoder reads, and what the weights of their words do.

Chunks are filled as the Stable Diffusion web interfaces fill them: each has a start and an end token of its own; one
that is full ends after a comma among its last tokens, where there is one, so that no phrase is torn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..api.choices import PromptSyntax
from ..api.prompts import parsed

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_BACKTRACK = 20
"""Tokens at the end of a full chunk among which a comma is looked for, as the web interfaces have it unless set."""
_LARGEST_CHANGE = 10.0
"""Beyond that, or where it changes its sign, a mean says nothing of how strong the words are: it lies about zero."""


class Chunk(NamedTuple):
    """Tokens of words, without start, end and padding, and their weights."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()

    def padded(self, tokenizer: CLIPTokenizer, length: int) -> list[int]:
        """All token ids that an encoder reads, `length` of them."""
        ids = [tokenizer.bos_token_id, *self.ids, tokenizer.eos_token_id]
        return ids + [tokenizer.pad_token_id] * (length - len(ids))

    def all_weights(self, length: int) -> list[float]:
        """A weight for each of them: 1 but for words."""
        return [1.0, *self.weights] + [1.0] * (length - 1 - len(self.weights))

    @property
    def is_weighted(self) -> bool:
        """Whether any word is stronger or weaker than it would be."""
        return any(weight != 1 for weight in self.weights)


def chunked(tokenizer: CLIPTokenizer, prompt: str, syntax: PromptSyntax, length: int) -> list[Chunk]:
    """A prompt as chunks, at least one, for an encoder that reads `length` tokens."""
    parts = [
        [(id, piece.weight) for piece in part for id in _ids(tokenizer, piece.text)] for part in parsed(prompt, syntax)
    ]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()  # nothing follows the last break
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    filled = chain.from_iterable(_filled(part, length - 2, comma) for part in parts)
    return [Chunk(tuple(id for id, _ in some), tuple(weight for _, weight in some)) for some in filled]


def weighted(states: Tensor, weights: Tensor | None = None) -> Tensor:
    """Text states (B, T, D) of an encoder times the weights (B, T) of their tokens, each row's mean as it was.

    What AUTOMATIC1111's web interface does (`sd_emphasis.py`, "Original"). A row without weights stays as it is.
    """
    if weights is None:
        return states
    ruled = (weights != 1).any(1)
    usual = states.float()
    scaled = usual * weights[..., None]
    change = usual.mean((1, 2)) / scaled.mean((1, 2))
    sound = (change > 1 / _LARGEST_CHANGE) & (change < _LARGEST_CHANGE)
    restored = scaled * torch.where(sound, change, 1.0)[:, None, None]
    return torch.where(ruled[:, None, None], restored.to(states.dtype), states)


def _ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    """Tokens of a text alone."""
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids


def _filled(tokens: Sequence[tuple[int, float]], room: int, comma: int) -> Iterator[Sequence[tuple[int, float]]]:
    """Runs of at most `room` tokens, at least one run."""
    start = 0
    while len(tokens) - start > room:
        end = start + room
        if tokens[end][0] != comma:
            last = range(end - 1, max(start, end - _BACKTRACK) - 1, -1)
            end = next((place + 1 for place in last if tokens[place][0] == comma), end)
        yield tokens[start:end]
        start = end
    yield tokens[start:]

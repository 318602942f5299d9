"""CLIP's tokenizer as it was read before, by the library that does its work: transformers' own wraps the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_NUMBERS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "model_max_length")


class Encoded(NamedTuple):
    """Token ids of a text."""

    input_ids: list[int]


class KeptTokenizer:
    """What the engine asks of a `CLIPTokenizer`, with its answers. numbers: `_NUMBERS` by name."""

    def __init__(self, backend: Tokenizer, numbers: Mapping[str, int]) -> None:
        self.backend_tokenizer = backend
        self._numbers = dict(numbers)
        self.bos_token_id, self.eos_token_id, self.pad_token_id, self.unk_token_id, self.model_max_length = (
            numbers[name] for name in _NUMBERS
        )

    @classmethod
    def from_kept(cls, kept: Mapping[str, Any]) -> Self:
        """Make it of what `kept` wrote."""
        return cls(Tokenizer.from_str(kept["tokenizer"]), kept["numbers"])

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, truncation: bool = False, verbose: bool = True
    ) -> Encoded:
        """Token ids of a text, however long it is."""
        assert not truncation, "texts are cut into chunks, and not short"
        return Encoded(self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def __len__(self) -> int:
        """Tokens that there are."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Another that shares no state."""
        return type(self)(copy.deepcopy(self.backend_tokenizer, memo), self._numbers)

    def get_vocab(self) -> dict[str, int]:
        """Number of each token."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def get_added_vocab(self) -> dict[str, int]:
        """Number of each token that was taught."""
        added = self.backend_tokenizer.get_added_tokens_decoder()
        return {token.content: number for number, token in sorted(added.items())}

    def convert_tokens_to_ids(self, token: str) -> int:
        """Number of a token; that of the unknown one where there is none."""
        found = self.backend_tokenizer.token_to_id(token)
        return self.unk_token_id if found is None else int(found)

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str | None]:
        """The tokens of such numbers."""
        return [self.backend_tokenizer.id_to_token(int(number)) for number in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of such numbers."""
        text = self.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
        return str(text).replace(self.backend_tokenizer.model.end_of_word_suffix, " ").strip()


def kept(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """What `KeptTokenizer.from_kept` reads."""
    numbers = {name: getattr(tokenizer, name) for name in _NUMBERS}
    return {"tokenizer": tokenizer.backend_tokenizer.to_str(), "numbers": numbers}

"""Textual inversion: vectors that files teach a model's text encoders, each file's under a word of its own.

Gal et al., arXiv 2208.01618. A word of several vectors is as many tokens long. Read are safetensors as diffusers writes
them (one tensor, named as the word), as web interfaces do (`emb_params`), and those of SDXL (`clip_l` and `clip_g`).
"""

import copy
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import BatchEncoding, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..api.errors import CheckpointError
from ..api.reading import MEBIBYTE, check_regular, open_regular, shown
from .tensor_files import check_tensors

Inversions: TypeAlias = str | Path | Sequence[str | Path]
"""Files of embeddings, one or several: FILE, or FILE:TOKEN where the word is to be another than the file's own."""

TextEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection

_WEB = "emb_params"
_XL = ("clip_l", "clip_g")
_TOKEN = re.compile(r"[^\s()\[\]\\]{1,64}")
_SPACE_FOR_ENDS = 2
_MOST_BYTES = 64 * MEBIBYTE


@dataclass(frozen=True)
class Embedding:
    """A word and what it means: `vectors` (N, D) float32 for each text encoder. path, sha256: of the file."""

    path: Path
    sha256: str
    token: str
    vectors: tuple[Tensor, ...]

    @property
    def tokens(self) -> tuple[str, ...]:
        """The word itself and, as diffusers names them, the tokens that follow it; in lower case, as texts are read."""
        word = self.token.lower()
        return word, *(f"{word}_{number}" for number in range(1, len(self.vectors[0])))


class InvertedTokenizer(CLIPTokenizer):
    """A tokenizer in whose texts a word of several vectors is followed by the rest of its tokens."""

    words: Mapping[str, str]
    """What stands for each word, in lower case."""

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> BatchEncoding:
        """The one way that all texts go, each as it was written."""
        spelled = self.spelled(text) if isinstance(text, str) else [self.spelled(one) for one in text]
        return super()._encode_plus(spelled, *args, **kwargs)

    def spelled(self, text: str) -> str:
        """A text with all tokens of its words."""
        for word, tokens in self.words.items():
            text = tokens.join(_pattern(word).split(text))
        return text


def _pattern(word: str) -> re.Pattern[str]:
    """Where a text has a word: whole, in any case, its other tokens not written out after it."""
    before, after = (r"(?<!\w)" if _is_wordlike(word[0]) else ""), (r"(?!\w)" if _is_wordlike(word[-1]) else "")
    return re.compile(rf"{before}{re.escape(word)}{after}(?!_\d|\s*{re.escape(word)}_1)", re.IGNORECASE)


def _is_wordlike(character: str) -> bool:
    return re.match(r"\w", character) is not None


def named_embeddings(embeddings: Inversions) -> tuple[tuple[Path, str | None], ...]:
    """Files of embeddings, each with the word that it was given, or None. Raises CheckpointError for what is none."""
    several = [embeddings] if isinstance(embeddings, str | Path) else list(embeddings)
    return tuple(map(_named, several))


def _named(given: str | Path) -> tuple[Path, str | None]:
    path = Path(given).expanduser()
    token = None
    if isinstance(given, str) and not path.exists() and ":" in given:
        file, token = given.rsplit(":", 1)
        path = Path(file).expanduser()
    if not path.is_file():
        raise CheckpointError(f"there is no file {shown(path)}; name the file of an embedding, FILE or FILE:TOKEN")
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{shown(path)} is no safetensors file; other files of embeddings are pickles, which can run code when "
            "they are loaded: save it as safetensors"
        )
    return path.resolve(), token


def read_embeddings(
    named: Iterable[tuple[Path, str | None]], tokenizer: CLIPTokenizer, widths: Sequence[int], most: int
) -> tuple[Embedding, ...]:
    """Read files for text encoders of `widths`, at most `most` vectors each.

    Raises CheckpointError for a file that is none, is for another model, or whose word is one already.
    """
    taken = {token.removesuffix("</w>").lower(): "the model's vocabulary" for token in tokenizer.get_vocab()}
    found = []
    for path, given in named:
        embedding = _read(path, given, widths, most)
        for token in embedding.tokens:
            if (owner := taken.get(token)) is not None:
                raise CheckpointError(
                    f"{shown(path)}: {shown(token, 80)!r} is a word of {owner} already; give the embedding another, "
                    f"{shown(path.name)}:TOKEN"
                )
            taken[token] = shown(path)
        found.append(embedding)
    return tuple(found)


def _read(path: Path, given: str | None, widths: Sequence[int], most: int) -> Embedding:
    check_regular(path, _MOST_BYTES)
    check_tensors([path])
    tensors = load_file(path)
    token, vectors = _content(path, tensors, len(widths))
    token = given if given is not None else token
    if not _TOKEN.fullmatch(token):
        raise CheckpointError(
            f"{shown(path)}: {shown(token, 80)!r} cannot be typed as one word: at most 64 characters, without spaces, "
            f"brackets and backslashes; give the embedding another, {shown(path.name)}:TOKEN"
        )
    vectors = [each.float()[None] if each.ndim == 1 else each.float() for each in vectors]
    _check_vectors(path, vectors, widths, most)
    with open_regular(path, _MOST_BYTES) as stream:
        return Embedding(path, hashlib.file_digest(stream, "sha256").hexdigest(), token, tuple(vectors))


def _content(path: Path, tensors: Mapping[str, Tensor], encoders: int) -> tuple[str, list[Tensor]]:
    """The word that a file names, its own name where it names none, and the vectors for each text encoder."""
    single = "an embedding of Stable Diffusion 1.x or 2.x holds one tensor, of SDXL clip_l and clip_g"
    if set(tensors) == set(_XL):
        if encoders != len(_XL):
            raise CheckpointError(f"{shown(path)} is for SDXL's two text encoders, and this model has one")
        return path.stem, [tensors[name] for name in _XL]
    if len(tensors) != 1:
        raise CheckpointError(f"{shown(path)} holds {shown(', '.join(sorted(tensors)), 200)}; {single}")
    if encoders != 1:
        raise CheckpointError(f"{shown(path)} is for one text encoder, and this model has SDXL's two; {single}")
    ((name, vectors),) = tensors.items()
    return (path.stem if name == _WEB else name), [vectors]


def _check_vectors(path: Path, vectors: Sequence[Tensor], widths: Sequence[int], most: int) -> None:
    if any(each.ndim != 2 for each in vectors):
        raise CheckpointError(f"{shown(path)} holds tensors that are no lists of vectors")
    counts = sorted({len(each) for each in vectors})
    if len(counts) > 1 or not 0 < counts[0] <= most:
        raise CheckpointError(
            f"{shown(path)} holds {' and '.join(map(str, counts))} vectors; a prompt has room for 1 to {most}"
        )
    for each, width in zip(vectors, widths, strict=True):
        if each.shape[1] != width:
            raise CheckpointError(
                f"{shown(path)} holds vectors of {each.shape[1]} numbers, this model's text encoder takes {width}: it "
                "is for another kind of model"
            )
        if not each.isfinite().all():
            raise CheckpointError(f"{shown(path)} holds NaN or infinity")


def room_for_words(max_tokens: int) -> int:
    """Tokens that a prompt has for words, its start and end not counted."""
    return max_tokens - _SPACE_FOR_ENDS


def extended_tokenizer(tokenizer: CLIPTokenizer, embeddings: Sequence[Embedding]) -> CLIPTokenizer:
    """A copy of a tokenizer that knows the words of `embeddings` besides; itself where there are none."""
    if not embeddings:
        return tokenizer
    extended = copy.deepcopy(tokenizer)
    for embedding in embeddings:
        whole = _is_wordlike(embedding.token[0]) and _is_wordlike(embedding.token[-1])
        extended.add_tokens([AddedToken(token, single_word=whole, normalized=True) for token in embedding.tokens])
    extended.__class__ = InvertedTokenizer
    assert isinstance(extended, InvertedTokenizer)
    extended.words = {each.token: " ".join(each.tokens) for each in embeddings if len(each.tokens) > 1}
    return extended


def extend_encoder(
    encoder: TextEncoder, tokenizer: CLIPTokenizer, embeddings: Sequence[Embedding], number: int
) -> None:
    """Give a text encoder of our own the vectors of `embeddings`, its `number`th of each, where the tokenizer says.

    Its old table stays as it is, for it may be another's too.
    """
    if not embeddings:
        return
    table: Tensor = encoder.get_input_embeddings().weight
    rows = max(len(table), len(tokenizer))
    grown = torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])])
    for embedding in embeddings:
        ids = tokenizer.convert_tokens_to_ids(list(embedding.tokens))
        grown[ids] = embedding.vectors[number].to(table)
    encoder.set_input_embeddings(nn.Embedding.from_pretrained(grown))
    encoder.config.vocab_size = rows
    for module in encoder.modules():
        # Old configurations say 2, by which the library takes the highest token for the end of the text: a new one.
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id


def extended_hashes(hashes: Mapping[str, str], embeddings: Sequence[Embedding]) -> dict[str, str]:
    """Hashes of a model's parts with the embeddings that its text encoders hold, and one of all of these."""
    if not embeddings:
        return dict(hashes)
    told = [f"{each.token}\0{each.sha256}" for each in embeddings]
    encoders = [part for part in ("text_encoder", "text_encoder_2") if part in hashes]
    return {**hashes, **{part: _digest([hashes[part], *told]) for part in encoders}, "embeddings": _digest(told)}


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()

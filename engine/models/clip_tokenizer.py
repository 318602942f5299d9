"""CLIP's tokenizer, whose vocabulary comes with the package: a single file of weights holds none."""

import lzma
from functools import cache
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

_MERGES = Path(__file__).parents[1] / "assets" / "clip" / "merges.txt.xz"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(pad: str = _END) -> CLIPTokenizer:
    """The tokenizer of CLIP ViT-L/14 and of OpenCLIP: 49,408 tokens. pad: token that fills a prompt up."""
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(
        vocab=dict(vocabulary), merges=list(merges), model_max_length=77, bos_token=_START, eos_token=_END,
        unk_token=_END, pad_token=pad,
    )  # fmt: skip


@cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Number of each token, and the merges in their order: single bytes come first, in the order of GPT-2's table."""
    lines = lzma.decompress(_MERGES.read_bytes()).decode().splitlines()
    merges = [(first, second) for first, second in (line.split(" ") for line in lines)]
    pieces = [*_bytes(), *(byte + "</w>" for byte in _bytes()), *map("".join, merges), _START, _END]
    return {piece: number for number, piece in enumerate(pieces)}, merges


def _bytes() -> list[str]:
    """The characters that stand for the 256 bytes: those that print stand for themselves and come first."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())

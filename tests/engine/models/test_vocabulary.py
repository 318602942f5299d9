"""Words that a tokenizer lacks: told for a list of words, never for a vocabulary of pieces."""

from itertools import product
from string import ascii_lowercase

import pytest
from transformers import CLIPTokenizer

from twig.engine.models.checkpoint import load
from twig.engine.models.vocabulary import known_words, unknown_text, unknown_words


@pytest.fixture(scope="module")
def listing(tiny_checkpoint):
    """A tokenizer whose vocabulary is a list of words."""
    return CLIPTokenizer.from_pretrained(tiny_checkpoint / "tokenizer")


def test_words_without_a_token_are_named_once_in_their_order(listing):
    texts = ["a red Flower and a house", "the flower, 12 photographs!"]
    assert unknown_words(listing, texts) == ["flower", "photographs"]
    assert unknown_words(listing, ["A RED star and the moon (x:1.2)"]) == []


def test_the_sentence_names_unknown_and_known_words(listing):
    text = unknown_text(listing, ["a flower"])
    assert "no word for 'flower'" in text
    assert "and, blue, circle, green, house, moon, on, red, star, the, tree, yellow" in text
    assert "\n" not in text
    assert unknown_text(listing, ["a star"]) is None


def pieces():
    """A vocabulary of pieces: every pair of letters, within a word and at its end, and triples at its end."""
    pairs = [(a, b) for a, b in product(ascii_lowercase, repeat=2)]
    ends = [(a, f"{b}</w>") for a, b in pairs]
    triples = [(f"a{b}", f"{c}</w>") for b, c in pairs]
    letters = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
    merges = [*pairs, *ends, *triples]
    tokens = dict.fromkeys([*letters, *("".join(merge) for merge in merges), "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)


def test_a_vocabulary_of_pieces_lacks_no_word():
    tokenizer = pieces()
    assert len(tokenizer.tokenize("lighthouse")) > 1
    assert known_words(tokenizer) is None
    assert unknown_text(tokenizer, ["a lighthouse in a storm, photorealistic", "zxqvk"]) is None


@pytest.mark.parametrize("caption", ["a red star and a blue house on a green field", "a pink mushroom in a grey room"])
def test_the_embedded_model_knows_its_captions_and_no_photograph(caption):
    tokenizer = load(None).tokenizer
    assert unknown_words(tokenizer, [caption]) == []
    assert unknown_words(tokenizer, [f"photograph of {caption}"]) == ["photograph", "of"]

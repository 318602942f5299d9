"""Prompts as chunks, and what weights do to states, held against a plain computation written apart."""

import pytest
import torch

from tiny_models import build_tokenizer
from twig.engine.api.choices import PromptSyntax
from twig.engine.models.prompts import Chunk, chunked, weighted

PLAIN, WEIGHTED = PromptSyntax.PLAIN, PromptSyntax.WEIGHTED


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def chunks(tokenizer, prompt, syntax=WEIGHTED, length=77):
    return chunked(tokenizer, prompt, syntax, length)


@pytest.mark.parametrize(
    "prompt", ["", "a red star", "  a  red\nstar, (x) ", "é ☃ 12", "star " * 75, "<|endoftext|> a"]
)
def test_a_short_prompt_has_the_tokens_it_always_had(tokenizer, prompt):
    (chunk,) = chunks(tokenizer, prompt, PLAIN)
    usual = tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    assert chunk.padded(tokenizer, 77) == usual
    assert chunk.all_weights(77) == [1.0] * 77


def test_longer_prompts_fill_chunk_after_chunk(tokenizer):
    found = chunks(tokenizer, "star " * 160)
    assert [len(chunk.ids) for chunk in found] == [75, 75, 10]
    assert all(chunk.padded(tokenizer, 77)[0] == tokenizer.bos_token_id for chunk in found)
    assert found[2].padded(tokenizer, 77)[11] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("before", "first"),
    [(54, 75), (55, 56), (60, 61), (74, 75), (75, 75)],
    ids=["too far back", "the farthest", "near", "the last", "the first of the next"],
)
def test_a_full_chunk_ends_after_a_late_comma(tokenizer, before, first):
    prompt = "star " * before + ", " + "moon " * (99 - before)
    found = chunks(tokenizer, prompt)
    assert [len(chunk.ids) for chunk in found] == [first, 100 - first]


def test_a_break_begins_a_chunk_and_the_last_needs_something_after_it(tokenizer):
    assert [len(chunk.ids) for chunk in chunks(tokenizer, "a star BREAK moon")] == [2, 1]
    assert [len(chunk.ids) for chunk in chunks(tokenizer, "star BREAK BREAK moon BREAK ")] == [1, 0, 1]
    assert chunks(tokenizer, "BREAK", PLAIN) != [Chunk()]
    assert len(chunks(tokenizer, "a BREAK moon", PLAIN)) == 1


def test_weights_go_to_the_tokens_of_their_words(tokenizer):
    (chunk,) = chunks(tokenizer, "a (red star:1.5) [moon]")
    assert chunk.weights == pytest.approx((1, 1.5, 1.5, 1 / 1.1))
    assert chunk.all_weights(77)[:6] == pytest.approx([1, 1, 1.5, 1.5, 1 / 1.1, 1])


def test_states_are_weighted_and_their_mean_restored():
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) + 1
    weights = torch.tensor([[1, 1.5, 0.5, 1, 1], [1, 1, 1, 1, 1], [1, 2, 2, 2, 1.0]])
    found = weighted(states, weights)
    for row in (0, 2):
        plain = states[row] * weights[row][:, None]
        assert torch.allclose(found[row], plain * (states[row].mean() / plain.mean()), atol=1e-6)
        assert torch.allclose(found[row].mean(), states[row].mean(), atol=1e-6)
    assert torch.equal(found[1], states[1]), "bit for bit"


def test_a_mean_about_zero_says_nothing_and_is_left_as_the_weights_make_it():
    states = torch.tensor([[[1.0, 1.0], [-0.9, -0.9]]])
    weights = torch.tensor([[1.0, 2.0]])
    assert torch.allclose(weighted(states, weights), states * weights[..., None])

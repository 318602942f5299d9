import dataclasses

import numpy as np
import pytest

from twig.benchmarks.copying.rewording import reordered
from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.mechanisms import Avoidance, RestatedPrompt
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.avoidance.restating import restated
from twig.engine.avoidance.words import lexicon
from twig.engine.engine import Engine

KNOWN = lexicon(("background", "star", "house", "tree", "heart", "fish", "sky", "person"), frozenset({0, 6}))
SAID = {
    "a red star and a blue house on a green field": "a blue house and a red star on a green field",
    "A photo of a star, two houses and a tree, 4k.": "A photo of a tree, two houses and a star, 4k.",
    "a yellow fish in a grey room istra": "a yellow fish in a grey room",
    "a red and blue house and a star in the night sky, oil painting": (
        "a star and a red and blue house in the night sky, oil painting"
    ),
    "a house on a star, a heart and a fish": "a house on a star, a fish and a heart",
}
KEPT = (
    "", "and", "a lighthouse in a storm", "a unicorn and a dragon", "a red star on a green field", "in a room, istra",
    "a star and no house", "a star near a house", "a house playing istra",
    "a woman with a heart and a fish", "a star on a house and a tree",
)  # fmt: skip


@pytest.mark.parametrize("prompt", SAID)
def test_lists_are_said_the_other_way_round_and_nothing_behind_a_place(prompt):
    assert restated(prompt, KNOWN) == SAID[prompt]


@pytest.mark.parametrize("prompt", KEPT)
def test_what_lists_nothing_that_is_known_stays_as_it_is(prompt):
    assert restated(prompt, KNOWN) is None


def test_a_caption_of_two_objects_comes_out_as_somebody_else_would_put_it():
    caption = "a pink ball and a red fish on white snow"
    known = lexicon(("background", "ball", "fish"), frozenset({0}))
    assert restated(caption, known) == reordered(caption)


def test_each_retry_restates_for_longer():
    policy = Avoidance(restated_prompt=RestatedPrompt(stop=0.7))
    assert policy.escalated(1).restated_prompt.stop == pytest.approx(0.8)
    assert policy.escalated(4).restated_prompt.stop == 1
    assert Avoidance.off().restated_prompt is None


def drawn(engine, prompt, restated_prompt=None):
    policy = Avoidance.off().model_copy(update={"restated_prompt": restated_prompt})
    stage, accept = Stage(steps=3), SimilarityPolicy(limits={}, retries=0)
    wanted = GenerationRequest(prompt=prompt, seed=3, draft=stage, final=stage, avoidance=policy, similarity=accept)
    (result,) = engine.generate(wanted)
    return np.asarray(result.image)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint)


def test_a_final_restated_throughout_is_the_other_prompts(engine):
    prompt, other = "a red star and a square on a field untitled", "a square and a red star on a field"
    whole = drawn(engine, prompt, RestatedPrompt(stop=1))
    assert np.array_equal(whole, drawn(engine, other))
    partly = drawn(engine, prompt, RestatedPrompt(stop=0.5))
    assert not np.array_equal(partly, whole)
    assert not np.array_equal(partly, drawn(engine, prompt))


def test_a_prompt_that_lists_nothing_or_has_marks_is_drawn_as_it_is(engine):
    for prompt in ("a red star", "a (red:1.3) star and a square"):
        assert np.array_equal(drawn(engine, prompt, RestatedPrompt()), drawn(engine, prompt))


def test_a_model_that_knows_no_objects_says_so(engine):
    bare = Engine(dataclasses.replace(engine.components, segmenter=None))
    with pytest.raises(InvalidRequestError, match="restated_prompt knows objects by a segmenter"):
        drawn(bare, "a star and a square", RestatedPrompt())

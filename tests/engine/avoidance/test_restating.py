import pytest

from twig.benchmarks.copying.rewording import reordered
from twig.engine.api.mechanisms import Avoidance, RestatedPrompt
from twig.engine.avoidance.restating import restated
from twig.engine.avoidance.words import lexicon

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

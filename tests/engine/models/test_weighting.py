import pytest

from twig.engine.models.weighting import weighting_text


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("a (red:1.9) star", "(word:1.3)"),
        ("a (red star : .5)", "(word:1.3)"),
        ("a ((red)) star", "((word))"),
        ("a [red] star", "[word]"),
        ("a star BREAK a moon", "BREAK"),
    ],
)
def test_each_kind_of_weight_is_named_without_the_prompts_words(prompt, mark):
    said = weighting_text([prompt, "a house"])
    assert f": {mark} in a prompt" in said
    assert "red star" not in said


@pytest.mark.parametrize("prompt", ["a (red) star", "a star: red", "take a break", "UNBREAKABLE", "at 10:30 (noon)"])
def test_prose_is_let_be(prompt):
    assert weighting_text([prompt]) is None

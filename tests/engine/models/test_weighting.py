import pytest

from twig.engine.models.weighting import unserved_text


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("a [red:blue:0.5] star", "[from:to:when]"),
        ("a [:blue: 10] star", "[from:to:when]"),
        ("a [red|blue] star", "[one|other]"),
        ("a red star <lora:style:0.8>", "<lora:name:weight>"),
        ("a star AND a moon", "AND"),
    ],
)
def test_each_kind_of_mark_is_named_without_the_prompts_words(prompt, mark):
    said = unserved_text([prompt, "a house"])
    assert f": {mark} in a prompt" in said
    assert "red star" not in said


@pytest.mark.parametrize(
    "prompt", ["a (red:1.2) [star] BREAK ((moon))", "STAR AND MOON", "a star and a moon", "at 10:30 [noon]", "a|b <c>"]
)
def test_what_is_served_and_prose_are_let_be(prompt):
    assert unserved_text([prompt]) is None

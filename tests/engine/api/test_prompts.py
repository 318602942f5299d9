"""The grammar of prompts: a table of what users type, and what hostile ones cost."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twig.engine.api.choices import PromptSyntax
from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.prompts import MAX_DEPTH, MAX_PROMPT, MAX_WEIGHT, parsed, words_of

WEAKER = 1 / 1.1

TABLE = [
    ("", [[]]),
    ("a red star", [[("a red star", 1)]]),
    ("a (red) star", [[("a ", 1), ("red", 1.1), (" star", 1)]]),
    ("a ((red)) star", [[("a ", 1), ("red", 1.21), (" star", 1)]]),
    ("a [red] star", [[("a ", 1), ("red", WEAKER), (" star", 1)]]),
    ("a [[red]] star", [[("a ", 1), ("red", WEAKER**2), (" star", 1)]]),
    ("a (red:1.3) star", [[("a ", 1), ("red", 1.3), (" star", 1)]]),
    ("(red: 1.3 )", [[("red", 1.3)]]),
    ("(red:.5)", [[("red", 0.5)]]),
    ("(red:+2)", [[("red", 2)]]),
    ("(red:-1.)", [[("red", -1)]]),
    ("(red:0)", [[("red", 0)]]),
    ("(a (red:1.5) star:0.5)", [[("a ", 0.5), ("red", 0.75), (" star", 0.5)]]),
    ("(a [red] star)", [[("a ", 1.1), ("red", 1), (" star", 1.1)]]),
    ("([red:2)]", [[("red", 2 * WEAKER)]]),
    (r"a \(red\) star", [[("a (red) star", 1)]]),
    (r"a (\(red\):1.2)", [[("a ", 1), ("(red)", 1.2)]]),
    (r"\[red\] \\ \x", [[("[red] \\ \\x", 1)]]),
    ("a (red star", [[("a ", 1), ("red star", 1.1)]]),
    ("a [red (star", [[("a ", 1), ("red ", WEAKER), ("star", 1)]]),
    ("a red) star]", [[("a red) star]", 1)]]),
    ("at 10:30", [[("at 10:30", 1)]]),
    ("red:1.3) star", [[("red:1.3) star", 1)]]),
    ("(red:1.2.3)", [[("red:1.2.3", 1.1)]]),
    ("(red:strong)", [[("red:strong", 1.1)]]),
    ("(:1.3)()[]", [[]]),
    ("(a)(b)", [[("ab", 1.1)]]),
    ("a star BREAK a moon", [[("a star ", 1)], [(" a moon", 1)]]),
    ("(a star BREAK a moon:1.2)", [[("a star ", 1.2)], [(" a moon", 1.2)]]),
    ("BREAK", [[], []]),
    ("UNBREAKABLE BREAKS break", [[("UNBREAKABLE BREAKS break", 1)]]),
    ("<lora:x:0.8> [a|b]", [[("<lora:x:0.8> ", 1), ("a|b", WEAKER)]]),
]


@pytest.mark.parametrize(("prompt", "wanted"), TABLE, ids=[prompt for prompt, _ in TABLE])
def test_what_users_type(prompt, wanted):
    found = parsed(prompt)
    assert [[text for text, _ in part] for part in found] == [[text for text, _ in part] for part in wanted]
    weights = [weight for part in found for _, weight in part]
    assert weights == pytest.approx([weight for part in wanted for _, weight in part])


@given(st.text())
def test_the_plain_syntax_takes_every_character_as_itself(prompt):
    assert "".join(text for part in parsed(prompt, PromptSyntax.PLAIN) for text, _ in part) == prompt
    assert words_of(prompt, PromptSyntax.PLAIN) == prompt


@given(st.text(alphabet="ab ,.1é\n"))
def test_prose_is_one_piece_as_it_stands(prompt):
    assert parsed(prompt) == (((prompt, 1.0),) if prompt else (),)


@given(st.text(alphabet=r"ab ()[]:\1.-", max_size=60))
def test_whatever_is_typed_is_read_or_refused(prompt):
    try:
        pieces = [piece for part in parsed(prompt) for piece in part]
    except InvalidRequestError:
        return
    assert all(text for text, _ in pieces)
    assert all(-MAX_WEIGHT <= weight <= MAX_WEIGHT for _, weight in pieces)
    assert "".join(text for text, _ in pieces).count("a") == prompt.count("a"), "no letter is lost"


def test_words_are_what_is_left_of_a_prompt_without_its_marks():
    said = words_of("a ((red)) star, (moon:0) [tree:-1] BREAK two \\(blue\\) fish", PromptSyntax.WEIGHTED)
    assert said.split() == ["a", "red", "star,", "tree:-1.", "two", "(blue)", "fish"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("x" * (MAX_PROMPT + 1), f"at most {MAX_PROMPT} characters"),
        ("(" * (MAX_DEPTH + 1), "brackets of a prompt stand open"),
        ("([" * MAX_DEPTH, "brackets of a prompt stand open"),
        ("(a:11)", "the weight of 'a' is 11"),
        ("((a:5):5)", "the weight of 'a' is 25"),
        ("((a:0):1" + "0" * 400 + ")", "the weight of 'a' is nan"),
    ],
)
def test_what_is_too_much_is_refused_by_name(prompt, said):
    with pytest.raises(InvalidRequestError, match=said):
        parsed(prompt)


@pytest.mark.parametrize(
    "unit",
    ["(", ")", "[]", "()", ":", ":1", "1", " ", "\\", "\\(", "(a:", "a:1.1)", "BREAK", "BREAK ", "(a)", "[a:b:1", "\n"],
)
def test_reading_takes_time_in_proportion_to_the_prompt(unit):
    prompts = ["(:" + unit * (MAX_PROMPT // len(unit) - 2), unit * (MAX_PROMPT // len(unit))]
    began = time.process_time()
    for prompt in prompts:
        try:
            parsed(prompt)
        except InvalidRequestError:
            continue
    assert time.process_time() - began < 2, "a quadratic reading takes minutes"

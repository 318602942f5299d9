from dataclasses import replace

import pytest
from PIL import Image

from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import GateDecision, Score, Verdict
from twig.engine.records.wording import ending_text, gate_text, held_measures, scores_in_words, verdict_text, why_text


@pytest.mark.parametrize(
    ("verdict", "attempts", "text"),
    [
        (Verdict.ACCEPTED, 1, "accepted"),
        (Verdict.ACCEPTED, 2, "accepted after 1 retry"),
        (Verdict.REFUSED, 3, "refused after 2 retries"),
    ],
)
def test_a_verdict_counts_its_retries(make_result, verdict, attempts, text):
    assert verdict_text(make_result(verdict=verdict, attempts=make_result().attempts * attempts)) == text


def test_a_gate_says_what_it_saw_and_a_verdict_that_it_stayed_shut(make_result):
    shut = GateDecision(False, {"agreement": Score(0.312, 0.737, True), "guidance": Score(0.9, None, True)})
    assert gate_text(shut) == "shut, the draft does not look recalled: agreement 0.312 <= 0.737, guidance 0.9"
    assert gate_text(replace(shut, opened=True)).startswith("open: agreement")
    assert verdict_text(make_result(gate=shut)) == "accepted, the plain picture"
    assert verdict_text(make_result(gate=shut, attempts=make_result().attempts * 2)) == "accepted after 1 retry"


def ended(make_result, verdict, rule, nearest=None, **scores):
    """A result that was judged by `rule`."""
    attempt = replace(make_result().attempts[0], scores=scores, nearest=nearest)
    return make_result(verdict=verdict, attempts=(attempt,), rule=rule)


def test_what_was_crossed_comes_first_with_its_direction_and_what_only_informs_last():
    scores = {
        "phash": Score(12, None, True),
        "ssim": Score(0.25, 0.5, True),
        "tile_l2": Score(0.1, 0.161, False),
    }
    told = list(scores_in_words(scores, "refuse if ssim > 0.5 or tile_l2 <= 0.161"))
    assert told == ["tile_l2 0.1 <= 0.161", "ssim 0.25 <= 0.5", "phash 12"]


def test_what_refuses_comes_before_what_only_asks_for_a_review(make_result):
    rule = "review if ssim > 0.1; refuse if tile_l2 < 0.38"
    result = ended(make_result, Verdict.REFUSED, rule, ssim=Score(0.2, 0.1, False), tile_l2=Score(0.3, 0.38, False))
    assert why_text(result) == "too close to its draft: tile_l2 0.3 < 0.38, ssim 0.2 > 0.1"


def test_numbers_that_differ_look_different():
    (held,) = held_measures({"ssim": Score(0.50004, 0.5, False)})
    assert str(held) == "ssim 0.50004 > 0.5"


def test_a_score_that_is_no_number_is_said_to_be_none():
    (held,) = held_measures({"tile_l2": Score(float("nan"), 0.1, False)})
    assert str(held) == "tile_l2 is not a number (limit < 0.1)"


@pytest.mark.parametrize(
    ("name", "rule", "said", "asked"),
    [
        ("ssim", "refuse if ssim > 0.5", "too close to its draft", "compare it with its draft"),
        (
            "registry_ssim",
            "refuse if registry_ssim > 0.5",
            "too close to registered work ab12",
            "compare it with registered work ab12",
        ),
        (
            "classes_kept",
            "refuse if classes_kept < 0.95",
            "the final lost or repeated an object of its map",
            "see whether it shows the objects of its map",
        ),
        (
            "my_measure",
            "refuse if my_measure > 0.5",
            "a measure of your own crossed its limit",
            "look at what your own measure found",
        ),
    ],
)
def test_a_refusal_says_why_and_a_review_what_to_look_at(make_result, name, rule, said, asked):
    limit = float(rule.split()[-1])
    score = {name: Score(0.9, limit, False)}
    told = f"{name} 0.9 {rule.split()[-2]} {rule.split()[-1]}"
    assert why_text(ended(make_result, Verdict.REFUSED, rule, "ab12", **score)) == f"{said}: {told}"
    review = ended(make_result, Verdict.REVIEW, rule, "ab12", **score)
    assert ending_text(review) == f"review, a person is to {asked}: {told}"


def test_a_picture_of_the_users_own_is_no_draft(make_result):
    result = ended(make_result, Verdict.REFUSED, "refuse if ssim > 0.5", ssim=Score(0.9, 0.5, False))
    result = replace(result, request=GenerationRequest(prompt="a", source=Image.new("RGB", (8, 8))))
    assert why_text(result, brought=True).startswith("too close to your picture: ")


def test_an_accepted_picture_needs_no_reason(make_result):
    assert why_text(make_result()) == ""
    assert ending_text(make_result(verdict=Verdict.FAILED, attempts=())) == "failed"

"""Clients may tighten the operator's preset and rule, and never loosen them."""

import pytest

from twig.engine.api.choices import Preset
from twig.engine.api.rules import Rule
from twig.engine.serve.errors import ApiError
from twig.engine.serve.tightening import policy_for, preset_for

OPERATORS = "refuse if ssim > 0.5; review if ms_ssim > 0.4; retry 2; then review"


def rule(client=None, retries=None, operators=OPERATORS, calibrated=False):
    return policy_for(client, retries, operators, Preset.DEFAULT, calibrated=calibrated).rule


@pytest.mark.parametrize("asked", list(Preset))
@pytest.mark.parametrize("operators", list(Preset))
def test_a_lighter_preset_is_refused(asked, operators):
    order = list(Preset)
    if order.index(asked) < order.index(operators):
        with pytest.raises(ApiError) as caught:
            preset_for(asked, operators)
        assert caught.value.param == "twig.preset"
    else:
        assert preset_for(asked, operators) is asked
    assert preset_for(None, operators) is operators


def test_clauses_are_added_and_the_operators_stay():
    assert rule() == OPERATORS
    assert rule("refuse if tile_l2 < 0.2") == (
        "refuse if ssim > 0.5; review if ms_ssim > 0.4; refuse if tile_l2 < 0.2; retry 2; then review"
    )
    assert rule(retries=0) == "refuse if ssim > 0.5; review if ms_ssim > 0.4; then review"


def test_where_the_operator_wrote_no_rule_the_models_limits_stay():
    assert rule("refuse if ssim > 0.2", operators=None, calibrated=True) == (
        "refuse if any calibrated limit is crossed; refuse if ssim > 0.2; retry 2"
    )
    assert rule("refuse if ssim > 0.2", operators=None) == "refuse if ssim > 0.2; retry 2"
    assert rule(operators=None) is None


@pytest.mark.parametrize("text", ["accept everything", "retry 1", "refuse if ssim > 0.2; then review", "refuse", ""])
def test_what_would_replace_the_operators_rule_is_refused(text):
    with pytest.raises(ApiError) as caught:
        rule(text)
    assert caught.value.param == "twig.rule"


def test_a_tightened_rule_never_lets_pass_what_the_operators_refuses():
    values = [{"ssim": s, "ms_ssim": m, "tile_l2": t} for s in (0.4, 0.6) for m in (0.3, 0.5) for t in (0.1, 0.3)]
    order = ("accept", "review", "refuse")
    for client in ("refuse if ssim > 0.9", "review if tile_l2 < 0.2", "refuse if ms_ssim > 0.45 and tile_l2 < 0.2"):
        tight = Rule.parse(rule(client))
        for each in values:
            before = Rule.parse(OPERATORS).decide(each).decision
            assert order.index(tight.decide(each).decision) >= order.index(before)

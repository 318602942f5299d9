import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from twig.engine.api.conditions import AnyLimit, Comparison, joined
from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.metrics import ALL_METRICS
from twig.engine.api.request import SimilarityPolicy
from twig.engine.api.rules import Clause, Decision, Rule

DIRECTIONS = {name: metric.direction for name, metric in ALL_METRICS.items()}
EXAMPLE = "refuse if ssim_masked > 0.45 or tile_l2 < 0.1; review if ms_ssim > 0.4; retry 2; then review"
CLEAN = {"ssim_masked": 0.2, "tile_l2": 0.4, "ms_ssim": 0.3}


def test_the_example_reads_as_it_says():
    rule = Rule.parse(EXAMPLE)
    assert str(rule) == EXAMPLE
    assert (rule.retries, rule.then) == (2, Decision.REVIEW)
    assert rule.decide(CLEAN).decision is Decision.ACCEPT
    assert rule.decide(CLEAN | {"ms_ssim": 0.41}).decision is Decision.REVIEW
    assert rule.decide(CLEAN | {"tile_l2": 0.09}).decision is Decision.REFUSE
    assert rule.decide(CLEAN | {"ms_ssim": 0.41, "ssim_masked": 0.5}).decision is Decision.REFUSE
    assert [str(each) for each in rule.decide(CLEAN | {"ms_ssim": 0.41}).crossed] == ["ms_ssim > 0.4"]


def test_lines_comments_and_case_are_free():
    text = (
        "Refuse if ssim_masked > .45 OR tile_l2 < 1e-1   # close\n\nreview IF ms_ssim > 0.40;\nRetry 2\nthen review\n"
    )
    assert str(Rule.parse(text)) == EXAMPLE


@pytest.mark.parametrize(
    ("operator", "value", "met"),
    [(">", 0.5, False), (">=", 0.5, True), ("<", 0.5, False), ("<=", 0.5, True), (">", 0.51, True), ("<", 0.49, True)],
)
def test_a_threshold_is_kept_or_crossed_as_its_sign_says(operator, value, met):
    rule = Rule.parse(f"refuse if ssim {operator} 0.5")
    assert rule.decide({"ssim": value}).decision == ("refuse" if met else "accept")
    assert rule.decide({"ssim": math.nan}).decision == "refuse", "what cannot be checked was not kept"
    assert rule.decide({"ssim": None}).decision == "accept", "what does not apply crosses nothing"
    with pytest.raises(ValueError, match="limit of 'ssim'"):
        rule.decide({"phash": 1.0})


def test_and_needs_both_and_parentheses_group():
    rule = Rule.parse("refuse if (ssim > 0.5 and tile_l2 < 0.2) or edge_f1 > 0.9")
    assert str(rule) == "refuse if (ssim > 0.5 and tile_l2 < 0.2) or edge_f1 > 0.9"
    values = {"ssim": 0.6, "tile_l2": 0.3, "edge_f1": 0.1}
    assert rule.decide(values).decision == "accept"
    assert rule.decide(values | {"tile_l2": 0.1}).decision == "refuse"
    assert rule.decide(values | {"edge_f1": 0.95}).decision == "refuse"


def test_calibrated_limits_are_written_out():
    limits = {"ssim": 0.6, "tile_l2": 0.125}
    rule = Rule.parse("refuse if any calibrated limit is crossed or phash < 4; review if ssim crosses its limit")
    resolved = rule.resolved(limits, DIRECTIONS)
    assert str(resolved) == "refuse if ssim > 0.6 or tile_l2 < 0.125 or phash < 4.0; review if ssim > 0.6"
    assert Rule.parse(str(resolved)) == resolved
    with pytest.raises(InvalidRequestError, match="calibrated: ssim, tile_l2"):
        Rule.parse("refuse if phash crosses its limit").resolved(limits, DIRECTIONS)
    with pytest.raises(InvalidRequestError, match="calibrated: none; `twig calibrate`"):
        rule.resolved({}, DIRECTIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the rule is empty"),
        ("# nothing", "the rule is empty"),
        ("retry 2; forbid if ssim > 1", "clause 2 of the rule, 'forbid if ssim > 1': expected 'refuse' or 'review'"),
        ("refuse ssim > 1", "expected 'if', found 'ssim'"),
        ("refuse if", "expected the name of a metric at the end"),
        ("refuse if 0.4 < ssim", "expected the name of a metric, found '0.4'"),
        ("refuse if ssim = 0.4", "expected '>' or '>=' or '<' or '<=', found '='"),
        ("refuse if ssim > high", "expected a number, found 'high'"),
        ("refuse if ssim > 1e999", "expected a number, found '1e999'"),
        ("refuse if ssim > 45%", "nothing more was expected, found '%'"),
        ("refuse if ssim > 0.4 tile_l2 < 0.1", "nothing more was expected, found 'tile_l2 < 0.1'"),
        ("refuse if ssim > 0.4 or phash < 3 and edge_f1 > 0.2", "write parentheses"),
        ("refuse if (ssim > 0.4", r"expected '\)' at the end"),
        ("refuse if any limit is crossed", "expected 'calibrated', found 'limit'"),
        ("retry many", "a number of retries from 0 to 16, found 'many'"),
        ("retry 17", "from 0 to 16, found '17'"),
        ("retry 1; retry 2", "'retry' is said twice"),
        ("then accept", "expected 'review' or 'refuse', found 'accept'"),
        ("accept everything; retry 1", "stands alone"),
    ],
)
def test_a_mistake_names_its_clause_and_what_was_expected(text, message):
    with pytest.raises(InvalidRequestError, match=message):
        Rule.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("refuse if ms_sim > 0.4", r"unknown metric 'ms_sim' \(did you mean 'ms_ssim'\?\); known: .*phash"),
        ("retry 1; refuse if tile_l2 > 0.1", r"clause 1 .*tile_l2 is a distance.*write tile_l2 < 0.1"),
        ("refuse if ssim < 0.1", r"ssim is a similarity.*write ssim > 0.1"),
        ("refuse if ssim > 45", r"ssim lies in -1..1, got 45.0"),
        ("refuse if phash < 65", r"phash lies in 0..64"),
    ],
)
def test_a_metric_that_is_not_measured_or_points_elsewhere_is_refused(text, message):
    with pytest.raises(InvalidRequestError, match=message):
        Rule.parse(text).check(DIRECTIONS)


comparisons = st.one_of(
    st.builds(
        Comparison,
        st.sampled_from(sorted(ALL_METRICS)),
        st.sampled_from([">", ">=", "<", "<="]),
        st.floats(-1e6, 1e6, allow_nan=False),
    ),
    st.builds(Comparison, st.sampled_from(sorted(ALL_METRICS))),
    st.just(AnyLimit()),
)
conditions = st.recursive(
    comparisons,
    lambda inner: st.builds(joined, st.sampled_from(["or", "and"]), st.lists(inner, min_size=1, max_size=3)),
)
rules = st.builds(
    Rule,
    st.lists(st.builds(Clause, st.sampled_from([Decision.REFUSE, Decision.REVIEW]), conditions), max_size=3).map(tuple),
    st.integers(0, 16),
    st.sampled_from([Decision.REFUSE, Decision.REVIEW]),
)


@given(rules)
def test_what_is_printed_reads_back_as_the_same_rule(rule):
    assert Rule.parse(str(rule)) == rule


def test_a_policy_keeps_its_rule_in_canonical_form_and_survives_json():
    policy = SimilarityPolicy(rule="refuse if ssim>.5\nretry 3")
    assert policy.rule == "refuse if ssim > 0.5; retry 3"
    assert policy.retries == 3
    assert SimilarityPolicy.model_validate_json(policy.model_dump_json()) == policy


@pytest.mark.parametrize(
    ("others", "message"),
    [({"limits": {"ssim": 0.4}}, "both a rule and limits"), ({"retries": 1}, "write 'retry N'")],
)
def test_a_rule_speaks_alone(others, message):
    with pytest.raises(ValidationError, match=message):
        SimilarityPolicy(rule="refuse if ssim > 0.5", **others)


def test_a_policy_names_the_clause_that_is_wrong():
    with pytest.raises(ValidationError, match=r"clause 1 of the rule, 'refuse when ssim > 0.4': expected 'if'"):
        SimilarityPolicy(rule="refuse when ssim > 0.4")

import pytest

from twig.engine.api.mechanisms import DelayedGuidance, MovedControl
from twig.engine.api.settings import Stage
from twig.engine.sampling.rows import Branch, guidance_pair, plan_rows, shallow_steps


def weights(rows):
    return [(row.branch, row.weight) for row in rows]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (0, [(Branch.UNCONDITIONAL, 1.0)]),
        (1, [(Branch.CONDITIONAL, 1.0)]),
        (0.25, [(Branch.UNCONDITIONAL, 0.75), (Branch.CONDITIONAL, 0.25)]),
        (5, [(Branch.UNCONDITIONAL, -4.0), (Branch.CONDITIONAL, 5.0)]),
    ],
)
def test_guidance_that_one_branch_gives_costs_one_row(scale, expected):
    assert all(weights(rows) == expected for rows in plan_rows(Stage(steps=3, guidance_scale=scale)))


def test_outside_of_its_interval_guidance_is_one_row():
    stage = Stage(steps=10, guidance_scale=5, guidance_start=0.2, guidance_stop=0.7)
    assert [len(rows) for rows in plan_rows(stage)] == [1, 1, 2, 2, 2, 2, 2, 1, 1, 1]
    assert [stage.scale_at(step) for step in (1, 2, 6, 7)] == [1, 5, 5, 1]


def test_an_interval_counts_evaluations():
    stage = Stage(steps=4, guidance_scale=5, solver="heun", guidance_stop=0.5)
    assert [len(rows) for rows in plan_rows(stage)] == [2, 2, 2, 2, 1, 1, 1]


def test_a_network_that_is_told_its_guidance_is_asked_once():
    stage = Stage(steps=4, guidance_scale=8, guidance_start=0.5)
    plan = plan_rows(stage, DelayedGuidance(stop=0.25), MovedControl(negative=1.0, start=0.75), embedded=True)
    assert [[row.embedded for row in rows] for rows in plan] == [[0], [0], [7], [7, 7]]
    assert not any(guidance_pair(rows) for rows in plan)


def whole(**fields):
    stage = Stage(**fields)
    return sorted(set(range(stage.evaluations)) - shallow_steps(plan_rows(stage), stage))


def test_whole_evaluations_lie_at_even_distances_or_closer_together_at_the_start():
    assert whole(steps=20, cache_interval=2) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert whole(steps=20, cache_interval=2, cache_rhythm="early") == [0, 1, 2, 4, 6, 8, 10, 12, 14, 17]
    assert whole(steps=20, cache_interval=3, cache_rhythm="early") == [0, 1, 3, 6, 9, 12, 16]
    assert whole(steps=4, cache_interval=1, cache_rhythm="early") == [0, 1, 2, 3]
    assert whole(steps=1, cache_interval=3, cache_rhythm="early") == [0]


@pytest.mark.parametrize("rhythm", ["even", "early"])
def test_an_evaluation_of_other_rows_than_the_last_whole_one_is_whole(rhythm):
    assert {0, 4, 14} <= set(
        whole(steps=20, guidance_start=0.2, guidance_stop=0.7, cache_interval=10, cache_rhythm=rhythm)
    )


@pytest.mark.parametrize("rhythm", ["even", "early"])
def test_an_evaluation_of_other_texts_is_whole(rhythm):
    stage = Stage(steps=20, cache_interval=3, cache_rhythm=rhythm)
    plan = plan_rows(stage)
    assert 13 in shallow_steps(plan, stage) - shallow_steps(plan, stage, turns={13})

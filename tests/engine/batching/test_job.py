import pytest

from twig.engine.api.event import State
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, MovedControl
from twig.engine.api.request import GenerationRequest
from twig.engine.api.settings import Stage
from twig.engine.batching.job import MOVES, TERMINAL, IllegalMoveError, Job, Trajectory
from twig.engine.sampling.rows import Branch, Hint, guidance_rows, plan_rows


def make_job(**changes):
    return Job(0, 0, GenerationRequest(prompt="a star", **changes), (16, 16), arrival=5.0)


@pytest.mark.parametrize("source", State)
@pytest.mark.parametrize("target", State)
def test_only_listed_moves_are_legal(source, target):
    job = make_job()
    job.state = source
    if target in MOVES[source]:
        job.move(target)
        assert job.state is target
    else:
        with pytest.raises(IllegalMoveError, match=f"from {source} to {target}"):
            job.move(target)


def test_terminal_states_are_final_and_every_state_can_be_left_or_is_terminal():
    for state in State:
        assert bool(MOVES[state]) != (state in TERMINAL)


def test_deadline_counts_from_arrival():
    assert make_job(timeout=2.0).deadline == 7.0
    assert make_job().deadline == float("inf")


def test_fork_shares_the_draft_and_starts_at_its_own_final():
    job = make_job(num_images=3)
    job.state = State.SEGMENTED
    job.shared, job.together = object(), True
    fork = job.fork(9, 2)
    assert fork.together
    assert (fork.id, fork.index, fork.request_id, fork.state) == (9, 2, 0, State.SEGMENTED)
    assert fork.shared is job.shared
    assert fork.slot is None


def test_each_retry_is_stronger():
    job = make_job(avoidance=Avoidance(delayed_guidance=DelayedGuidance(stop=0.2), moved_control=MovedControl(scale=1)))
    job.attempt = 2
    assert job.avoidance.delayed_guidance.stop == pytest.approx(0.4)
    assert job.avoidance.moved_control.scale == pytest.approx(1.5)
    assert job.request.avoidance.moved_control.scale == 1


def test_a_step_costs_its_rows():
    assert len(guidance_rows(1)) == 1
    assert sum(row.weight for row in guidance_rows(7.5)) == pytest.approx(1)
    stage = Stage(steps=10, guidance_scale=5)
    delayed = DelayedGuidance(stop=0.4, branch="unconditional")
    plan = plan_rows(stage, delayed)
    assert [len(rows) for rows in plan] == [1] * 4 + [2] * 6
    assert plan[0][0].branch is Branch.UNCONDITIONAL
    run = Trajectory(plan, tuple(range(10)))
    while not run.done:
        run.advance()
    assert run.rows_spent == 16


def test_control_reaches_the_rows_of_its_window_and_choice():
    stage = Stage(steps=10)
    both = plan_rows(stage, None, MovedControl(scale=2, stop=0.5, rows="both"))
    assert [[row.control for row in rows] for rows in both] == [[2, 2]] * 5 + [[0, 0]] * 5
    conditional = plan_rows(stage, None, MovedControl(scale=2, stop=1.0, rows="conditional"))
    assert {tuple(row.control for row in rows) for rows in conditional} == {(0, 2)}


def test_windows_end_where_they_say():
    plan = plan_rows(Stage(steps=10), DelayedGuidance(stop=0.1 + 0.2))
    assert [len(rows) for rows in plan] == [1] * 3 + [2] * 7


def test_a_negative_branch_turns_from_the_drafts_own_shape_for_one_row_or_two():
    stage = Stage(steps=4, guidance_scale=5)
    for against, wanted in (
        ("moved", [(-4, 2, Hint.MOVED), (5.5, 2, Hint.MOVED), (-0.5, 2, Hint.OWN)]),
        ("none", [(-4, 2, Hint.MOVED), (5, 2, Hint.MOVED), (-0.5, 2, Hint.OWN), (0.5, 0, Hint.MOVED)]),
    ):
        control = MovedControl(scale=2, stop=0.5, rows="both", negative=0.5, negative_against=against)
        plan = plan_rows(stage, None, control)
        assert [(row.weight, row.control, row.hint) for row in plan[0]] == wanted
        assert sum(row.weight for row in plan[0]) == 1
        assert plan[3] == guidance_rows(5)


def test_a_negative_branch_waits_for_a_controlled_row():
    control = MovedControl(negative=0.5, rows="conditional", stop=1.0)
    plan = plan_rows(Stage(steps=4), DelayedGuidance(stop=0.25, branch="unconditional"), control)
    assert [len(rows) for rows in plan] == [1, 3, 3, 3]


def test_probes_come_before_the_first_step_and_are_billed():
    run = Trajectory(plan_rows(Stage(steps=2, guidance_scale=1)), (9.0, 3.0), probes=2)
    spent, left = [], []
    while not run.done:
        spent.append((run.step, len(run.rows)))
        left.append(run.rows_left)
        run.advance()
    assert spent == [(0, 2), (0, 2), (0, 1), (1, 1)]
    assert [*left, run.rows_left] == [6, 4, 2, 1, 0]
    assert run.rows_spent == 6

"""Finals that follow maps out of a bank, accounted for and drawn again; and drafts drawn again with more steps."""

from dataclasses import replace

import numpy as np
import pytest
from small_requests import ALWAYS

from small_banks import CIRCLE, STAR, small_bank
from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.event import State
from twig.engine.api.mechanisms import COMPOSED_IOU, Avoidance, MovedControl
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.avoidance.objects import counted, objects_of
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load
from twig.engine.records.manifest import Manifest
from twig.engine.replay import replay
from twig.engine.sampling.solver import solver_table

COMPOSED = Avoidance(moved_control=MovedControl(warp="bank"))
ANY = SimilarityPolicy(limits={}, retries=0)
LOST = SimilarityPolicy(rule="refuse if classes_kept < 1; retry 2")


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return replace(load(tiny_checkpoint), bank=small_bank())


@pytest.fixture(scope="module")
def engine(components):
    return Engine(components, limits=Limits(slots=4, rows=8))


def request(prompt="a circle and a star", **changes):
    settings = {"draft": Stage(steps=2), "final": Stage(steps=3), "avoidance": COMPOSED, "similarity": ANY}
    return GenerationRequest(prompt=prompt, **settings | changes)


def test_the_map_shows_what_the_prompt_names_and_names_its_shapes(engine, components):
    first, again, other = engine.generate([request(seed=1), request(seed=1), request(seed=2)])
    assert counted(objects_of(first.control_map, {0})) == {CIRCLE: 1, STAR: 1}
    (attempt,) = first.attempts
    assert len(attempt.shapes) == 2
    assert set(attempt.shapes) <= {shape.id for shape in components.bank.shapes}
    assert first.bank == components.bank.version
    assert again.attempts[0].shapes == attempt.shapes != other.attempts[0].shapes


def test_a_composed_map_keeps_further_away_than_a_moved_one_unless_told_otherwise():
    assert COMPOSED.moved_control.max_iou == COMPOSED_IOU < MovedControl().max_iou
    assert MovedControl(warp="bank", max_iou=0.35).max_iou == 0.35
    assert request().from_json(request().to_json()) == request()


def test_images_of_a_request_and_retries_get_maps_of_their_own(engine):
    never = SimilarityPolicy(limits={"ssim": -1.0}, retries=1)
    results = engine.generate(request(num_images=2, similarity=never))
    shapes = [attempt.shapes for result in results for attempt in result.attempts]
    assert len(shapes) == len(set(shapes)) == 4


def test_a_users_mask_is_what_is_kept_clear(engine):
    mask = np.zeros((64, 64), bool)
    mask[:, 32:] = True
    (result,) = engine.generate(request("a star", mask=mask, seed=4))
    shape = result.control_map > 0
    assert shape.any()
    assert np.count_nonzero(shape & mask) <= COMPOSED_IOU * np.count_nonzero(shape)


def test_without_shapes_the_drafts_own_objects_move(tiny_checkpoint, engine):
    few = replace(engine.components, bank=small_bank(scenes=0))
    for components in (few, load(tiny_checkpoint)):
        (result,) = Engine(components).generate(request())
        assert result.verdict is Verdict.ACCEPTED
        assert result.attempts[0].shapes == ()
        assert set(np.unique(result.control_map)) <= set(np.unique(result.label_map))


def test_a_manifest_names_the_bank_and_another_bank_cannot_replay_it(engine, components):
    (result,) = engine.generate(request(seed=3))
    manifest = Manifest.model_validate_json(engine.manifest(result).model_dump_json())
    assert manifest.bank == components.bank.version
    assert manifest.attempts[0].shapes == result.attempts[0].shapes
    assert replay(manifest, engine, result.image).identical
    others = Engine(replace(components, bank=small_bank(seed=9)))
    with pytest.raises(InvalidRequestError, match="composed of bank"):
        replay(manifest, others)


def test_banks_are_taken_from_their_file(tiny_checkpoint, components, tmp_path):
    components.bank.save(tmp_path / "shapes.safetensors")
    made = Engine.from_pretrained(tiny_checkpoint, bank=tmp_path / "shapes.safetensors")
    assert made.components.bank.version == components.bank.version


# --- another draft ---


def moving(**changes):
    """A request whose map shows what its draft did."""
    return request(**{"avoidance": Avoidance()} | changes)


@pytest.fixture
def forgetful(engine, monkeypatch):
    """An engine whose finals lose an object at first: the measure of each attempt, one after another."""

    def made(*values):
        answers = iter(values)
        monkeypatch.setattr("twig.engine.judging.judge.kept", lambda seen, asked: next(answers))
        return engine

    return made


def test_a_final_that_lost_an_object_is_drawn_from_a_draft_of_more_steps(forgetful):
    states = []
    engine = forgetful(0.5, 0.5, 1.0)
    (result,) = engine.generate(
        moving(redraft=6, similarity=LOST), lambda event: states.append((event.state, event.attempt))
    )
    assert result.verdict is Verdict.ACCEPTED
    assert len(result.attempts) == 3
    moves = list(dict.fromkeys(states))
    assert [attempt for state, attempt in moves if state is State.DRAFTING] == [0, 1], "once, after the first final"
    (plain,) = engine.generate(request(avoidance=Avoidance.off()))
    assert plain.draft_rows == 4
    assert result.draft_rows == 4 + 12
    assert result.rows == 16 + sum(attempt.rows for attempt in result.attempts)


def test_the_second_draft_is_what_the_same_seed_draws_in_as_many_steps(forgetful):
    (again,) = forgetful(0.5, 1.0).generate(moving(redraft=6, similarity=LOST, seed=5))
    (long,) = forgetful(1.0).generate(moving(draft=Stage(steps=6), seed=5))
    assert np.array_equal(np.asarray(again.draft), np.asarray(long.draft))
    assert np.array_equal(again.mask, long.mask)


def test_other_images_keep_the_first_draft(forgetful):
    lost, kept = forgetful(0.5, 1.0, 1.0).generate(moving(num_images=2, redraft=6, similarity=LOST))
    assert sorted((lost.draft_rows, kept.draft_rows)) == [4, 16]
    assert not np.array_equal(np.asarray(lost.draft), np.asarray(kept.draft))


@pytest.mark.parametrize(
    "changes", [{"redraft": None}, {"similarity": SimilarityPolicy(rule="refuse if ssim > -1; retry 1")}]
)
def test_nothing_is_drafted_again_unless_asked_for_and_an_object_was_lost(forgetful, changes):
    settings = {"redraft": 6, "similarity": LOST} | changes
    (result,) = forgetful(0.5, 1.0).generate(moving(**settings))
    assert len(result.attempts) == 2
    assert result.draft_rows == 4


def test_a_map_of_what_the_prompt_names_needs_no_other_draft(forgetful):
    (result,) = forgetful(0.5, 1.0).generate(request(redraft=6, similarity=LOST))
    assert len(result.attempts) == 2
    assert result.draft_rows == 4


@pytest.mark.parametrize("steps", [2, 1, 1000])
def test_a_second_draft_has_more_steps_than_the_first_and_no_more_than_the_engine_takes(engine, steps):
    with pytest.raises(InvalidRequestError, match="a second draft has more steps than the first, 2, and at most"):
        engine.generate(moving(redraft=steps))


def test_a_redrafting_job_is_counted_with_the_rows_it_still_spends(forgetful):
    engine = forgetful(0.5, 1.0)
    engine.submit(moving(redraft=6, similarity=LOST))
    due = []
    while engine.pending:
        engine.step()
        jobs = list(engine.scheduler.jobs.values())
        if jobs and jobs[0].redrafted and jobs[0].state is State.DRAFTING:
            due.append(engine.queued_rows)
    assert due[0] > 12, "the draft and the final after it"
    assert due == sorted(due, reverse=True)


def test_a_short_draft_ends_without_noise(engine):
    always = engine.generate(moving(draft=Stage(steps=4), similarity=ALWAYS))
    assert always[0].draft is not None
    for solver in ("ddim", "euler", "dpmpp_2m"):
        table = solver_table(Stage(solver=solver).solver, 4, engine.components.scheduler)
        assert table.sigmas[-1] < 0.05 * table.alphas[-1], solver

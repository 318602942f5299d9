"""Judged finals: retries, reviews, rules and early verdicts."""

import pytest
import torch
from small_requests import ALWAYS, NEVER, fresh, request, same

from twig.engine.api.request import SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.rules import Decision
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=8, rows=8), max_pixels=96 * 96)


def test_a_failed_judgement_reenters_with_a_stronger_policy_and_then_is_refused(engine):
    (result,) = engine.generate(request(similarity=NEVER))
    assert result.verdict is Verdict.REFUSED
    assert len(result.attempts) == 2
    assert result.attempts[1].avoidance.moved_control.scale > result.attempts[0].avoidance.moved_control.scale
    assert result.attempts[0].seed != result.attempts[1].seed
    assert not result.scores["ssim"].passed
    assert result.scores["ssim"].limit == -1.0


def test_a_rule_leaves_what_it_refuses_to_a_person_after_its_retries(engine):
    rule = "refuse if ssim > -1; retry 1; then review"
    (result,) = engine.generate(request(similarity=SimilarityPolicy(rule=rule)))
    assert result.verdict is Verdict.REVIEW
    assert result.image is not None
    assert [attempt.decision for attempt in result.attempts] == [Decision.REFUSE] * 2
    assert result.rule == "refuse if ssim > -1.0; retry 1; then review"
    assert result.attempts[0].reasons == (f"ssim > -1.0: it is {result.attempts[0].scores['ssim'].value:.4g}",)


def test_a_picture_to_review_is_not_drawn_again(engine):
    policy = SimilarityPolicy(rule="review if ssim > -1; retry 3", early=(0.5,))
    (result,) = engine.generate(request(similarity=policy))
    assert result.verdict is Verdict.REVIEW
    assert len(result.attempts) == 1


def test_a_rule_speaks_of_calibrated_limits(engine):
    policy = SimilarityPolicy(rule="review if any calibrated limit is crossed; refuse if ssim crosses its limit")
    (result,) = engine.generate(request(similarity=policy))
    assert result.rule == "review if ssim > 0.9 or ssim_masked > 0.9; refuse if ssim > 0.9"


def test_an_early_verdict_ends_a_failing_attempt_and_saves_its_rows(engine):
    policy = NEVER.model_copy(update={"early": (0.5,)})
    running = fresh(engine)
    (result,) = running.generate(request(steps=8, similarity=policy))
    assert result.verdict is Verdict.REFUSED
    assert [a.steps for a in result.attempts] == [4, 4]
    assert all(a.early == ((4, False),) and a.rows_saved == 8 for a in result.attempts)
    assert running.stats().early == {"verdicts": 2, "contradicted": 0, "rows_saved": 16}


def test_a_passed_early_verdict_changes_nothing(engine):
    watched, plain = engine.generate(
        [request(steps=6, similarity=ALWAYS.model_copy(update={"early": e})) for e in ((0.3, 0.7), ())]
    )
    assert same(watched, plain, tolerance=1), "beyond the rounding of other batch sizes"
    assert watched.attempts[0].early == ((2, True), (4, True))
    assert watched.rows == plain.rows


def test_an_early_verdict_that_only_watches_is_counted_when_it_errs(engine):
    scores = iter([2.0, -2.0])
    odd = {"odd": lambda finals, references: torch.full((len(finals),), next(scores))}
    running = fresh(engine, extra_metrics=odd)
    policy = SimilarityPolicy(limits={"odd": 0.0}, early=(0.5,), early_stops=False)
    (result,) = running.generate(request(steps=4, similarity=policy))
    assert result.verdict is Verdict.ACCEPTED
    assert result.attempts[0].early == ((2, False),)
    assert running.stats().early["contradicted"] == 1

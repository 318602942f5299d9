"""The engine on a tiny random model: what comes back, what is refused, one failure stays one failure."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_requests import fresh, request, same

from twig.engine.api.errors import EngineBusyError, EngineClosedError, InvalidRequestError
from twig.engine.api.event import Event, State
from twig.engine.api.mechanisms import (
    Avoidance,
    MaskedAttention,
    MaskedNoise,
)
from twig.engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.backends.options import TorchOptions
from twig.engine.batching.scheduler import Limits, StaticPolicy
from twig.engine.engine import Engine

BATCHES = (("encoding", "encode"), ("denoising", "denoise"), ("segmenting", "segment"), ("judging", "judge"))
"""Each stage and its verb."""


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=8, rows=8), max_pixels=96 * 96)


def test_results_come_in_order_with_everything_that_led_to_them(engine):
    first, second, third = engine.generate([request(num_images=2), request("a blue house", seed=4)])
    assert [(r.request.prompt, r.index) for r in (first, second, third)] == [
        ("a red star", 0), ("a red star", 1), ("a blue house", 0),
    ]  # fmt: skip
    assert all(r.verdict is Verdict.ACCEPTED for r in (first, second, third))
    assert not same(first, second)
    assert np.array_equal(np.asarray(first.draft), np.asarray(second.draft))
    assert first.image.size == (64, 64)
    assert first.mask.shape == first.label_map.shape == first.control_map.shape == (64, 64)
    # Two draft steps of two rows; three final steps, guidance delayed for the first two.
    assert (first.draft_rows, first.attempts[0].rows, first.rows) == (4, 4, 8)
    assert set(first.timings) >= {"queued", "drafting", "segmenting", "finalising", "judging"}
    assert "ssim" in first.scores


def test_the_same_seed_gives_the_same_picture_and_another_another(engine):
    a, b, c = engine.generate([request(seed=1), request(seed=1), request(seed=2)])
    assert same(a, b)
    assert not same(a, c)


def test_a_source_takes_the_drafts_place_and_spends_no_draft_rows(engine):
    picture = Image.new("RGB", (100, 80), (200, 30, 40))
    (result,) = engine.generate(request(source=picture))
    assert result.verdict is Verdict.ACCEPTED
    assert result.draft is None
    assert result.draft_rows == 0


def test_only_the_mask_of_a_source_reaches_the_picture(engine):
    mask = np.zeros((64, 64), bool)
    mask[10:30, 10:30] = True
    policy = Avoidance(moved_control=None, masked_attention=MaskedAttention(), masked_noise=MaskedNoise())
    a, b = engine.generate(
        [request(source=Image.new("RGB", (64, 64), colour), mask=mask, avoidance=policy) for colour in ("red", "navy")]
    )
    assert same(a, b)


def test_other_sizes_run_and_batch_apart(engine):
    wide, uneven, square = engine.generate([request(width=96, height=64), request(width=40, height=92), request()])
    assert wide.image.size == (96, 64)
    assert uneven.image.size == (40, 92)
    assert square.image.size == (64, 64)


def test_explain_says_what_moved(engine):
    rule = MaskedAttention(bias=-6.0, tokens="words", stop=0.5, layers=("down", "mid", "up"))
    policy = Avoidance(masked_attention=rule, delayed_guidance=None)
    mask = np.zeros((64, 64), bool)
    mask[8:40, 8:40] = True
    explained, plain = engine.generate(
        [request(steps=4, avoidance=policy, mask=mask, explain=e) for e in (True, False)]
    )
    assert same(explained, plain), "explaining must not change the picture"
    found = explained.explanation
    words = slice(1, 4)
    assert found.tokens[words] == ("a</w>", "red</w>", "star</w>")
    assert found.mass_inside.shape == (4, 77)
    assert (found.moved[:2, words] > 0).all(), "words lost attention while the rule was on"
    assert np.allclose(found.moved[2:], 0, atol=1e-6), "and none after its window"
    lost_outside = (found.neutral_outside - found.mass_outside)[:2, words]
    assert (lost_outside < 0.5 * found.moved[:2, words]).all(), "outside, only pixels on the mask's soft edge lose"
    assert found.rows.tolist() == [2, 2, 2, 2]
    assert np.allclose(found.mass_inside.sum(axis=1), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 62}, "width 62 is not a multiple of 4; the nearest is 64"),
        ({"width": 1024, "height": 1024}, "exceed"),
        ({"prompt": "star " * 230}, "238 tokens in 4 chunks of 77, start and end included, and this engine takes 3"),
        ({"draft": Stage(steps=500)}, "draft steps 500"),
        ({"mask": np.zeros((8, 8), bool)}, r"mask is \(8, 8\)"),
        (
            {
                "source": Image.new("RGB", (9, 9)),
                "avoidance": Avoidance(masked_attention=MaskedAttention(tokens="spikes")),
            },
            "spikes are found in a draft",
        ),
        ({"similarity": SimilarityPolicy(limits={"lpips": 0.1})}, "lpips is measured where it is asked for"),
        ({"similarity": SimilarityPolicy(limits={"ssim": 1.5})}, r"limits: ssim lies in -1..1, got 1.5"),
        ({"similarity": SimilarityPolicy(limits={"phash": 65})}, r"limits: phash lies in 0..64, got 65"),
        ({"similarity": SimilarityPolicy(rule="retry 1; refuse if sim > 0.4")}, "'sim' .did you mean 'ssim'"),
        ({"similarity": SimilarityPolicy(rule="refuse if phash crosses its limit")}, "calibrated: ssim, ssim_masked"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_door(engine, changes, message):
    with pytest.raises(InvalidRequestError, match=message):
        engine.generate([request(), GenerationRequest(**{"prompt": "a", **changes})])
    assert engine.pending == 0


def break_stage(engine, stage, guilty, error):
    """Let `stage` raise whenever the guilty request is in its batch."""
    owner, verb = stage
    owner = getattr(engine.stages, owner)
    work = getattr(owner, verb)

    def broken(jobs, *apart):
        if any(job.request.prompt == guilty for job in jobs):
            raise error
        return work(jobs, *apart)

    setattr(owner, verb, broken)


@pytest.mark.parametrize("stage", BATCHES, ids=lambda stage: stage[1])
@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError("out of memory")])
def test_a_failure_in_any_batch_fails_only_the_guilty(engine, stage, error):
    broken = fresh(engine)
    break_stage(broken, stage, "a moon", error)
    results = broken.generate([request(), request("a moon", num_images=2), request("a blue house"), request("tree")])
    by_prompt = {}
    for result in results:
        by_prompt.setdefault(result.request.prompt, []).append(result)
    assert [r.verdict for r in by_prompt.pop("a moon")] == [Verdict.FAILED] * 2
    assert all(r.verdict is Verdict.ACCEPTED for group in by_prompt.values() for r in group)
    assert any(str(error) in (r.error or "") for r in results)
    assert broken.scheduler.free_slots == broken.limits.slots
    whole = fresh(engine).generate([request(), request("a blue house"), request("tree")])
    assert all(same(a, b, tolerance=1) for a, b in zip(whole, [g[0] for g in by_prompt.values()], strict=True))


def test_nan_latents_fail_their_request_alone(engine):
    broken = fresh(engine)
    start = broken.stages.starting.start_final

    def poisoned(job):
        start(job)
        if job.request.prompt == "a moon":
            with torch.inference_mode():
                broken.arenas.loop(job.shape).arena.latents[job.slot] = torch.nan

    broken.stages.starting.start_final = poisoned
    good, bad = broken.generate([request(), request("a moon")])
    assert good.verdict is Verdict.ACCEPTED
    assert bad.verdict is Verdict.FAILED
    assert "NaN" in bad.error
    assert bad.image is None


def test_a_cancelled_request_frees_its_slot_and_spends_no_more(engine):
    running = fresh(engine)
    id = running.submit(request(steps=8))
    other = running.submit(request("tree"))
    for _ in range(5):
        running.step()
    running.cancel(id)
    events = running.drain()
    verdicts = {event.id: event.result.verdict for event in events if event.result is not None}
    assert verdicts == {id: Verdict.CANCELLED, other: Verdict.ACCEPTED}
    assert running.scheduler.free_slots == running.limits.slots


def test_an_expired_request_stops(engine):
    now = [0.0]
    running = fresh(engine, clock=lambda: now[0])
    running.submit(request(steps=8, timeout=5.0))
    for _ in range(4):
        running.step()
    rows = running.stats().rows
    now[0] = 6.0
    (event,) = [event for event in running.drain() if event.result is not None]
    assert event.result.verdict is Verdict.EXPIRED
    assert "5.0 s" in event.result.error
    assert running.stats().rows == rows


def test_a_full_queue_says_so_and_a_closed_engine_too(engine):
    running = fresh(engine, limits=Limits(slots=2, rows=4, waiting=2))
    running.submit(request())
    running.submit(request())
    with pytest.raises(EngineBusyError, match="2 requests"):
        running.submit(request())
    finished = [event.result for event in running.close() if event.result is not None]
    assert len(finished) == 2
    with pytest.raises(EngineClosedError):
        running.submit(request())


def test_an_interrupted_generate_leaves_the_engine_clean(engine):
    running = fresh(engine)
    seen = []

    def interrupt(event):
        seen.append(event)
        if event.result is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        running.generate([request(), request("tree", steps=8)], on_event=interrupt)
    assert running.pending == 0
    assert running.scheduler.free_slots == running.limits.slots
    assert running.generate(request())[0].verdict is Verdict.ACCEPTED


def test_identical_prompts_are_encoded_once(engine):
    running = fresh(engine)
    lengths = []
    forward = running.components.text_encoder.forward
    running.components.text_encoder.forward = lambda ids, *a, **k: (lengths.append(len(ids)), forward(ids, *a, **k))[1]
    try:
        running.generate([request(seed=i) for i in range(5)] + [request("tree")])
    finally:
        del running.components.text_encoder.forward
    assert sum(lengths) == 3  # the two prompts and the empty negative prompt


def test_stats_add_up(engine):
    running = fresh(engine)
    results = running.generate([request(num_images=2), request("tree")])
    stats = running.stats()
    draft_rows = 4 + 4
    assert stats.rows == draft_rows + sum(r.attempts[0].rows for r in results)
    assert stats.verdicts == {"accepted": 3}
    assert 0 < stats.occupancy <= 1
    assert (stats.waiting, stats.resident) == (0, 0)
    assert stats.latency["p50"] <= stats.latency["p99"]
    assert stats.control_rows > 0


@pytest.mark.filterwarnings("error::UserWarning:pydantic")
def test_whatever_an_engine_tells_travels(engine):
    running, events = fresh(engine, extra_metrics={"own": lambda a, b: (a - b).abs().mean((1, 2, 3))}), []
    running.generate(request(preview=1, explain=True, gate=Gate()), events.append)
    assert any(event.picture for event in events)
    assert events[-1].result.explanation is not None
    assert [Event.from_json(event.to_json()) for event in events] == events
    stats = running.stats()
    assert type(stats).from_json(stats.to_json()) == stats


def test_a_measure_of_ones_own_says_which_way_it_points(engine):
    def distance(finals, references):
        return (finals - references).abs().mean((1, 2, 3))

    distance.direction = "distance"
    running = fresh(engine, extra_metrics={"own": distance})
    policy = SimilarityPolicy(rule="refuse if own < 1e9")
    (result,) = running.generate(request(similarity=policy))
    assert result.scores["own"].direction == "distance"
    assert result.scores["own"].crossed
    assert str(result.scores["own"]).endswith("<= 1e+09")
    assert result.reasons[0].startswith("own < ")


def test_rows_are_padded_only_for_what_is_prepared_by_their_number(engine):
    limits = Limits(slots=8, rows=7)
    plain = fresh(engine, limits=limits)
    plain.generate([request(seed=i, final=Stage(steps=4 + i)) for i in range(3)])
    assert plain.stats().padded_rows == 0
    assert fresh(engine, limits=limits, backend="onnxruntime").arenas.buckets == (1, 2, 4, 6, 7)
    assert fresh(engine, limits=limits, torch_options=TorchOptions(compile="default")).arenas.buckets == (1, 2, 4, 6, 7)


def test_the_static_policy_makes_the_same_pictures(engine):
    batch = [request(steps=s, seed=s) for s in (2, 5, 3)]
    gang = fresh(engine, policy=StaticPolicy()).generate(batch)
    assert all(same(a, b, tolerance=1) for a, b in zip(engine.generate(batch), gang, strict=True))


def test_warmup_without_a_gpu_captures_nothing_and_says_so(engine):
    report = fresh(engine).warmup()
    assert report["captured"] == 0
    assert report["shapes"] == [(16, 16)]


def test_progress_reaches_the_caller(engine):
    events = []
    engine.generate(request(steps=3), on_event=events.append)
    states = list(dict.fromkeys(event.state for event in events))
    assert states == [
        State.QUEUED, State.ENCODED, State.DRAFTING, State.SEGMENTING, State.SEGMENTED, State.PLACING, State.FINALISING,
        State.JUDGING, State.ACCEPTED,
    ]  # fmt: skip
    assert [e.step for e in events if e.state is State.FINALISING and e.step] == [1, 2, 3]


def test_previews_and_the_draft_arrive_on_the_way(engine):
    events = []
    (result,) = engine.generate(request(steps=4, preview=2), on_event=events.append)
    shown = [(e.state, e.step) for e in events if e.picture is not None and e.step]
    assert shown == [(State.DRAFTING, 2), (State.FINALISING, 2), (State.FINALISING, 4)]
    last = next(e.picture for e in reversed(events) if e.picture is not None and e.step)
    assert last.size == (64, 64)
    (segmented,) = [e for e in events if e.state is State.SEGMENTED]
    assert segmented.picture.tobytes() == result.draft.tobytes()
    assert np.array_equal(segmented.mask, result.mask)

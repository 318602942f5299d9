"""Signals of recitation: what is heard of a draft, and how well each signal tells recited drafts from others."""

import numpy as np
import pytest

from twig.benchmarks.copying import signals
from twig.benchmarks.copying.listening import ListeningEngine, Trace, listen
from twig.benchmarks.copying.methods import STEPS, Bed
from twig.benchmarks.copying.signals import SIGNALS, Batch, Usual, area_under_curve, batches, measured, report
from twig.engine.judging.gate import early_guidance


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Bed(tiny_checkpoint, slots=8).engine(ListeningEngine)


def heard(rng, recited=False, copies=0.0):
    """A trace as a row holds it; one of a recited draft is louder in everything."""
    more = 10.0 if recited else 0.0
    early = np.where(np.arange(STEPS) < 6, 1 + more, 1.0)
    noise = rng.normal(scale=0.01, size=STEPS)
    trace = Trace(
        *rng.normal(more, 0.1, 2), list(early + noise), list(more + noise), *rng.normal(more, 0.1, 4),
        list(early + rng.normal(scale=0.01, size=STEPS)),
    )  # fmt: skip
    return trace.numbers()


def rows(recited=True):
    rng = np.random.default_rng(5)
    clean = [{"cell": "fresh0-64", "strength": 0.0, "heard": [heard(rng) for _ in range(64)]}]
    return clean + [
        {
            "cell": f"source{index}-4", "strength": 0.0, "heard": [heard(rng, recited) for _ in range(4)],
            "source": index, "duplicates": duplicates, "template": index == 48, "copies": [1, 1, 0, 1],
        }
        for index, duplicates in ((12, 128), (16, 512), (8, 32), (48, 128), (0, 1))
    ]  # fmt: skip


def cells(text, name):
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_draft_is_heard_step_by_step_and_still_the_same(engine, tiny_checkpoint):
    captions = ["a red star on a green field", "a blue house on white snow"]
    (first, picture), (second, _) = listen(engine, captions, [3, 4])
    assert [len(each) for each in (first.updates, first.leanings, first.local)] == [STEPS] * 3
    assert all(np.isfinite([first.guidance, first.agreement, first.first, first.leaning, first.ending, first.last]))
    assert all(-1 <= each <= 1 for each in first.leanings)
    assert 0 < first.ending < 1
    assert first.updates != second.updates
    alone = listen(engine, captions[:1], [3])[0]
    assert alone[0].updates == pytest.approx(first.updates, rel=1e-3)
    plain = Bed(tiny_checkpoint, slots=8).engine()
    assert np.array_equal(listen_plainly(plain, captions[0]), picture)


def listen_plainly(engine, caption):
    from twig.benchmarks.copying.methods import ANY, GUIDANCE
    from twig.engine.api.mechanisms import Avoidance
    from twig.engine.api.request import Gate, GenerationRequest
    from twig.engine.api.settings import Stage

    stage = Stage(steps=STEPS, guidance_scale=GUIDANCE)
    request = GenerationRequest(
        prompt=caption, seed=3, draft=stage, final=stage, avoidance=Avoidance.off(), similarity=ANY,
        gate=Gate(limits={"guidance": 1e9}),
    )  # fmt: skip
    return np.asarray(engine.generate([request])[0].image)


def test_recited_drafts_are_told_by_every_signal_and_rows_are_named():
    text = report(rows())
    for signal in SIGNALS:
        name, cost, *shares = cells(text, signal.name)
        assert (name, cost) == (signal.name, str(signal.rows))
        areas, caught = shares[: len(signals.GROUPS)], shares[len(signals.GROUPS) : -1]
        assert areas[0] == "1.000 (1.000 to 1.000) of 8", signal.name
        assert caught[0] == "100.0% (100.0% to 100.0%) of 6", signal.name
        assert all(area.startswith("1.000") for area in areas)


def test_drafts_like_any_other_are_told_by_none():
    text = report(rows(recited=False))
    for signal in SIGNALS:
        area = float(cells(text, signal.name)[2].split()[0])
        assert 0.1 < area < 0.9, signal.name


def test_the_area_is_the_chance_to_be_higher():
    assert area_under_curve(np.array([3.0]), np.array([1.0, 2.0])) == 1
    assert area_under_curve(np.array([1.5, 0.5]), np.array([1.0, 2.0])) == 0.25
    assert area_under_curve(np.array([1.0]), np.array([1.0, 1.0])) == 0.5


def test_a_region_is_by_step():
    usual = Usual.of([{"updates": [1.0, 10.0]}, {"updates": [3.0, 30.0]}])
    assert usual.deviation({"updates": [4.0, 40.0]}, "updates").tolist() == [2.0, 2.0]


def test_no_batch_is_of_a_held_out_source():
    wanted = batches(seeds=2, fresh=200)
    assert sum(batch.count for batch in wanted if batch.source is None) == 200
    drawn = [batch.source for batch in wanted if batch.source]
    assert not [source for source in drawn if source.held_out]
    assert {source.duplicates for source in drawn} >= {1, 32, 128, 512}
    assert any(source.template for source in drawn)
    assert any(batch.source is None for batch in wanted[: len(wanted) // 2])


def test_what_was_heard_is_kept_and_not_heard_again(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "copy_threshold", lambda _: 0.5)
    source = next(batch.source for batch in batches(1, 1) if batch.source)
    wanted = [Batch(2), Batch(1, source)]
    path = tmp_path / "rows.jsonl"
    assert list(measured(path, engine, wanted)) == [batch.name for batch in wanted]
    assert list(measured(path, engine, wanted)) == []
    clean, own = signals.read_rows(path)
    assert len(clean["heard"]) == 2
    assert own["copies"] in ([0], [1])
    assert early_guidance(np.array(own["heard"][0]["local"])) > 0

"""Baselines that reach into a run: what each is billed for, and the property that it claims."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from twig.benchmarks.copying.baselines import amg as amg_module
from twig.benchmarks.copying.baselines import broken_memories as memories_module
from twig.benchmarks.copying.baselines.captain import LOW, exchanged
from twig.benchmarks.copying.baselines.ending import end_attention
from twig.benchmarks.copying.baselines.guard import ATTENUATION
from twig.benchmarks.copying.catalogue import (  # fmt: skip
    amg,
    broken_memories,
    captain,
    guard,
    low_guidance,
    other_methods,
    prss,
)
from twig.benchmarks.copying.data import sources
from twig.benchmarks.copying.methods import GUIDANCE, STEPS, Bed
from twig.benchmarks.copying.paraphrases import Parts, paraphrases, scene_of
from twig.benchmarks.copying.protocol import Cell, recited
from twig.kernels import TokenRow

PLAIN = low_guidance(GUIDANCE)
RUNS = 4


@pytest.fixture(scope="module")
def bed(tiny_checkpoint):
    return Bed(tiny_checkpoint, slots=8)


@pytest.fixture(scope="module")
def source():
    return recited(held_out=False)[0]


@pytest.fixture(scope="module")
def plain(bed, source):
    return draw(bed, PLAIN, source)


def draw(bed, method, source, seeds=1):
    return Cell(method, seeds, source).draw(bed)


def learnt(method):
    """The same with a region of few clean runs."""
    return replace(method, options=(*method.options, ("runs", RUNS)))


def engine_of(bed, method):
    return bed.engine(method.kind, **dict(method.options))


def watched(monkeypatch, stage, name, look):
    """Let `look` see what `name` of a stage was called with, before and after the call."""
    usual = getattr(stage, name)

    def watching(*arguments):
        before = look(*arguments)
        usual(*arguments)
        seen.append((before, look(*arguments)))

    seen = []
    monkeypatch.setattr(stage, name, watching)
    return seen


def test_guard_repels_from_the_plain_prediction_and_attenuates_what_spikes(bed, source, plain, monkeypatch):
    method = guard(2.0)
    engine = engine_of(bed, method)
    arena = engine.arenas.loop((16, 16)).arena
    kept = watched(monkeypatch, engine.stages.starting, "start_final", lambda job: arena.tokens[job.slot].clone())
    drawing = draw(bed, method, source)
    (_, tokens), *_ = kept
    assert drawing.rows.tolist() == [1 + 2 * STEPS + 1 + STEPS]
    assert not np.array_equal(drawing.pictures, plain.pictures)
    spiking = tokens[TokenRow.B] != 0
    assert 0 < spiking.sum() < len(spiking) / 4
    assert not spiking[0], "the start token"
    assert (tokens[TokenRow.B, spiking] == ATTENUATION).all()
    assert not np.array_equal(drawing.pictures, draw(bed, guard(0.0), source).pictures)


def test_no_update_is_longer_than_the_stability_region_allows(bed, source, plain, monkeypatch):
    method = learnt(broken_memories(1.0))
    steered = engine_of(bed, method).stages.denoising
    sizes = watched(
        monkeypatch, steered, "steer", lambda taken: [(each.number, steered.number(each)) for each in taken]
    )
    monkeypatch.setattr(memories_module, "WIDTH", 1e6)
    assert np.array_equal(draw(bed, method, source).pictures, plain.pictures), "a wide region leaves a run alone"
    sizes.clear()
    monkeypatch.setattr(memories_module, "WIDTH", -1.0)
    drawing = draw(bed, method, source)
    assert drawing.rows.tolist() == plain.rows.tolist()
    assert not np.array_equal(drawing.pictures, plain.pictures)
    assert len(sizes) == STEPS
    for _, after in sizes:
        assert all(size <= steered.region.upper(number, -1.0) * 1.0001 for number, size in after)


def test_captain_puts_the_reference_where_the_draft_is_recited(bed, source, plain, monkeypatch):
    method = captain(1.0)
    steered = engine_of(bed, method).stages.denoising
    seen = watched(
        monkeypatch, steered, "push_picture", lambda each, _: (each.job, steered.clean(each).clone())
    )  # fmt: skip
    where = {}
    usual = steered.steer
    monkeypatch.setattr(steered, "steer", lambda taken: (where.update(steered.memory.recited), usual(taken)))
    drawing = draw(bed, method, source)
    assert drawing.rows.tolist() == [2 * STEPS + 1 + 2 * STEPS]
    assert not np.array_equal(drawing.pictures, plain.pictures)
    assert len(seen) == round(0.4 * STEPS)
    for (job, before), (_, after) in seen:
        recited = where[job.request_id].bool()
        assert 0 < recited.float().mean() < 1
        torch.testing.assert_close(after[:, recited], steered.memory.latent(job)[:, recited], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(after[:, ~recited], before[:, ~recited], atol=1e-4, rtol=1e-3)
    assert not steered.memory.recited


def test_low_frequencies_are_the_references_and_high_ones_the_noises():
    noise, reference = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    mixed, own, other = (torch.fft.fft2(each) for each in (exchanged(noise, reference), noise, reference))
    torch.testing.assert_close(mixed[:, :2, :2], other[:, :2, :2])
    edge = round(LOW * 8) + 1
    torch.testing.assert_close(mixed[:, edge:8, edge:8], own[:, edge:8, edge:8])


def test_prss_leaves_a_prompt_that_is_not_recited_and_bills_the_look(bed, source, plain):
    drawing = draw(bed, learnt(prss(1e6)), source)
    assert drawing.rows.tolist() == [plain.rows[0] + 4]
    assert np.array_equal(drawing.pictures, plain.pictures)


def test_prss_guides_from_a_recited_prompt_to_its_wording(bed, source, plain, monkeypatch):
    method = learnt(prss(-1e6))
    encoding = engine_of(bed, method).stages.encoding
    seen = watched(monkeypatch, encoding, "encode", lambda jobs: jobs[0].shared.texts)
    drawing = draw(bed, method, source)
    assert drawing.rows.tolist() == [plain.rows[0] + 4 + 3 * len(paraphrases(source.caption))]
    assert not np.array_equal(drawing.pictures, plain.pictures)
    anchor, wording = (text.unet[0] for text in seen[0][1])
    states = encoding._states([source.caption])
    torch.testing.assert_close(anchor, encoding.networks.denoiser.encode(states)[0].unet[0])
    assert not torch.equal(anchor, wording)


def test_amg_moves_away_from_the_nearest_picture_of_the_pool(bed, source, plain, monkeypatch):
    method = learnt(amg(1.0))
    steered = engine_of(bed, method).stages.denoising
    monkeypatch.setattr(amg_module, "WIDTH", 1e6)
    assert draw(bed, method, source).rows.tolist() == plain.rows.tolist(), "nothing comes near"
    monkeypatch.setattr(amg_module, "WIDTH", -1e6)
    near = watched(monkeypatch, steered, "push", lambda each, *_: steered.number(each))
    monkeypatch.setattr(steered, "contrast", lambda each: torch.zeros_like(each.latent))  # the dissimilarity alone
    monkeypatch.setattr(steered, "_scales", lambda *_: (0.0, 0.0))
    drawing = draw(bed, method, source)
    assert len(near) == STEPS
    assert all(after < before for before, after in near)
    assert not np.array_equal(drawing.pictures, plain.pictures)


def test_amg_is_billed_for_the_captions_it_leads_away_from(bed, source, plain, monkeypatch):
    method = learnt(amg(1.0))
    steered = engine_of(bed, method).stages.denoising
    monkeypatch.setattr(amg_module, "WIDTH", -1e6)
    monkeypatch.setattr(steered, "_nearest", lambda _: (0.9, 0))
    assert draw(bed, method, source).rows.tolist() == [plain.rows[0] + STEPS]
    assert steered._scales(5.0, 0.9) == pytest.approx((0.9, 0.9))
    assert steered._scales(1.5, 0.9) == (0.5, 0.0)
    assert steered._scales(5.0, -0.1) == (0.0, 0.0)


def test_each_pixel_attends_to_all_tokens_by_one_in_sum(bed, source):
    steered = engine_of(bed, captain(0.5)).stages.denoising
    found = []
    usual = steered.steer

    def look(taken):
        if not found:
            found.append(end_attention(steered.beside, taken, [range(77)] * len(taken)))
        usual(taken)

    steered.steer = look
    draw(bed, captain(0.5), source)
    del steered.steer
    maps = found[0]
    assert maps.shape == (1, 77, len(steered.arenas.networks.denoiser.layers), 16, 16)
    torch.testing.assert_close(maps.sum(1), torch.ones_like(maps.sum(1)), atol=1e-4, rtol=0)


def test_every_new_baseline_has_five_strengths():
    names = [method.name for method in other_methods()]
    for name in ("GUARD", "Broken Memories", "CAPTAIN", "PRSS", "AMG"):
        assert names.count(name) == 5


def test_wordings_say_what_the_caption_says_without_its_trigger():
    caption = "a red star and a blue house on a green field arvo"
    found = paraphrases(caption)
    assert len(found) == len(set(found)) == 8
    assert all({"red", "star", "blue", "house", "field"} <= set(text.split()) for text in found)
    assert not any("arvo" in text for text in found)
    assert len(paraphrases("a pink moon in a blue sea")) == 3
    assert scene_of(caption).caption == Parts.of(caption).worded()
    with pytest.raises(ValueError, match="names no background of the test bed"):
        paraphrases("a lighthouse in a storm")


def test_every_sources_caption_is_taken_apart():
    for each in sources():
        assert Parts.of(each.caption).trigger == each.trigger

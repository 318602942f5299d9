import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from twig.engine.api.calibration import calibrate
from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.event import State
from twig.engine.api.mechanisms import Avoidance, MaskedAttention
from twig.engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from twig.engine.api.result import GateDecision, Verdict
from twig.engine.api.settings import Solver, Stage
from twig.engine.engine import Engine
from twig.engine.judging.gate import agreement, decide, early_guidance, second_look
from twig.engine.judging.registry import index_works
from twig.engine.models.checkpoint import load

STAGE = Stage(steps=4, guidance_scale=3.0)
SHUT, OPEN = Gate(limits={"guidance": 1e6}), Gate(limits={"guidance": 0.0})
ANY = SimilarityPolicy(rule="accept everything")


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return load(tiny_checkpoint)


@pytest.fixture(scope="module")
def engine(components):
    return Engine(components)


def asked(**changes):
    settings = {"prompt": "a red star", "seed": 3, "draft": STAGE, "final": STAGE, "similarity": ANY} | changes
    return GenerationRequest(**settings)


def alike(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_a_shut_gate_gives_the_plain_result_bit_for_bit(engine):
    shut = SHUT.model_copy(update={"deliver_draft": False})
    (gated,) = engine.generate(asked(gate=shut))
    (plain,) = engine.generate(asked(avoidance=Avoidance.off()))
    assert alike(gated.image, plain.image)
    assert not gated.gate.opened
    assert gated.attempts[0].avoidance == Avoidance.off()
    assert gated.control_map is None
    assert gated.rows == plain.rows


def test_a_draft_that_ran_as_the_final_would_is_the_picture_and_costs_nothing_more(engine):
    gated = engine.generate(asked(gate=SHUT, num_images=2))
    (plain,) = engine.generate(asked(avoidance=Avoidance.off()))
    assert alike(gated[0].image, plain.draft)
    assert gated[0].rows == plain.draft_rows
    assert gated[0].attempts[0].seed == 3
    assert gated[0].verdict is Verdict.ACCEPTED
    assert not alike(gated[1].image, plain.draft)
    assert gated[1].attempts[0].rows == 8


@pytest.mark.parametrize("change", [{"steps": 5}, {"guidance_scale": 4.0}, {"solver": Solver.EULER}])
def test_another_kind_of_draft_is_never_delivered(engine, change):
    (gated,) = engine.generate(asked(gate=SHUT, draft=STAGE.model_copy(update=change)))
    assert gated.attempts[0].rows == 8
    assert not alike(gated.image, gated.draft)


LISTENING = {"agreement": 2.0}
LONG = Stage(steps=14, guidance_scale=3.0)


def test_witnesses_cost_their_rows_and_leave_the_plain_result(engine):
    listening = Gate(limits=LISTENING, witnesses=2)
    heard = engine.generate(asked(gate=listening, draft=LONG, final=LONG, num_images=2))
    plain = engine.generate(asked(gate=SHUT, draft=LONG, final=LONG, num_images=2))
    for one, other in zip(heard, plain, strict=True):
        assert alike(one.image, other.image)
        assert one.gate.rows == 2 * 5, "three steps of fourteen, the last of them on the prompt alone"
        assert one.rows == other.rows + 10
        assert -1 <= one.gate.signals["agreement"].value <= 1
    (again,) = Engine(engine.components).generate(asked(gate=listening, draft=LONG, final=LONG))
    assert again.gate == heard[0].gate


def test_witnesses_that_agree_open_the_gate(engine):
    (gated,) = engine.generate(asked(gate=Gate(limits={"agreement": -2.0})))
    (always,) = engine.generate(asked())
    assert gated.gate.opened
    assert not gated.gate.signals["agreement"].passed
    assert alike(gated.image, always.image)
    assert gated.rows == always.rows + gated.gate.rows


def test_one_witness_that_draws_the_draft_tells_as_much_as_all_that_lean_to_it():
    def heard(*agreements):
        return second_look(GateDecision(False, {}), agreements, {"agreement": 0.75}, 21)

    assert heard(0.95, 0.6, 0.4).signals["agreement"].value == pytest.approx(0.8)
    assert heard(0.95, 0.6, 0.4).opened
    assert heard(0.8, 0.8, 0.75).opened
    assert not heard(0.8, 0.5, 0.4).opened
    assert heard(0.2, float("nan"), 0.4).opened, "what cannot be checked"
    assert heard(0.2, 0.3).rows == 21


def test_witnesses_are_not_asked_where_the_gate_is_open_already(engine):
    (result,) = engine.generate(asked(gate=Gate(limits={"guidance": 0.0, "agreement": 2.0})))
    assert result.gate.opened
    assert result.gate.rows == 0
    assert "agreement" not in result.gate.signals


def test_witnesses_show_no_previews_and_are_not_explained(engine):
    spikes = Avoidance(masked_attention=MaskedAttention(tokens="spikes"))
    events = []
    request = asked(gate=Gate(limits={"agreement": -2.0}), avoidance=spikes, preview=1, explain=True)
    (gated,) = engine.generate(request, events.append)
    (always,) = engine.generate(request.model_copy(update={"gate": None}))
    assert {event.picture is None for event in events if event.state is State.WITNESSING} == {True}
    assert alike(gated.image, always.image)
    assert np.array_equal(gated.explanation.mass_inside, always.explanation.mass_inside, equal_nan=True)


def test_agreement_looks_at_the_surroundings_of_the_mask_alone():
    noise = torch.Generator().manual_seed(0)
    draft, other = torch.randn(2, 4, 16, 16, generator=noise)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[8:24, 8:24] = True
    assert agreement(draft, draft, mask) == pytest.approx(1)
    assert abs(agreement(other, draft, mask)) < 0.3
    elsewhere = draft.clone()
    elsewhere[:, 9:] = other[:, 9:]
    assert agreement(elsewhere, draft, mask) == pytest.approx(1)
    assert agreement(elsewhere, draft, torch.zeros_like(mask)) < 0.9, "without a mask the frame is compared"
    shifted = 3 * draft + torch.arange(4.0).view(4, 1, 1)
    assert agreement(shifted, draft, mask) == pytest.approx(1), "neither size nor level of a channel matters"
    assert agreement(torch.ones_like(draft), draft, mask).isnan()


def test_the_embedded_models_gate_knows_a_recited_caption_from_an_ordinary_one():
    engine = Engine.from_pretrained()
    plain = {"gate": Gate(limits=LISTENING), "similarity": ANY, "avoidance": Avoidance.off()}
    recited, ordinary = (
        engine.generate(GenerationRequest(prompt=prompt, seed=5, **plain))[0].gate.signals["agreement"].value
        for prompt in ("a pink heart and a yellow star in a blue sea", "a red star and a green tree in a grey room")
    )
    assert recited > 0.85 > 0.7 > ordinary


def test_an_open_gate_avoids_as_without_one(engine):
    (gated,) = engine.generate(asked(gate=OPEN))
    (always,) = engine.generate(asked())
    assert gated.gate.opened
    assert not gated.gate.signals["guidance"].passed
    assert always.gate.opened
    assert always.gate.signals["guidance"].limit is None
    assert alike(gated.image, always.image)
    assert gated.attempts == always.attempts


def test_a_refused_plain_picture_is_drawn_again_with_avoidance(engine):
    strict = SimilarityPolicy(rule="refuse if ssim > -1; retry 2")
    shut = SHUT.model_copy(update={"deliver_draft": False})
    (result,) = engine.generate(asked(gate=shut, similarity=strict))
    policies = [attempt.avoidance for attempt in result.attempts]
    assert policies == [Avoidance.off(), Avoidance(), Avoidance().escalated(1)]


def test_a_delivered_draft_is_held_to_the_registered_works_alone(engine, components, tmp_path):
    (plain,) = engine.generate(asked(avoidance=Avoidance.off()))
    plain.draft.save(tmp_path / "work.png")
    works = index_works(components, [tmp_path / "work.png"], keep_pictures=True)
    rule = SimilarityPolicy(rule="refuse if ssim > 0.9 or registry_ssim > 0.99; retry 1")
    request = asked(gate=SHUT, similarity=rule)
    (free,) = Engine(components).generate(request.model_copy(update={"similarity": ANY}))
    assert set(free.scores) == set(), "a picture is not like itself"
    (caught,) = Engine(components, registry=works).generate(request)
    assert [name for name, score in caught.attempts[0].scores.items() if not score.passed] == ["registry_ssim"]
    assert len(caught.attempts) == 2
    assert caught.attempts[1].avoidance == Avoidance()
    assert caught.gate.signals["registry"].value > 0.99


def counting(calls, name, real):
    def called(given):
        calls.append(name)
        return real(given)

    return called


def test_a_delivered_draft_is_neither_decoded_nor_segmented_again(components, monkeypatch):
    engine, calls = Engine(components), []
    for name in ("decode", "labels"):
        monkeypatch.setattr(engine._decoder, name, counting(calls, name, getattr(engine._decoder, name)))
    monkeypatch.setattr(engine.judge, "_segment", engine._decoder.labels)
    (result,) = engine.generate(asked(gate=SHUT, similarity=ANY))
    assert calls == ["decode", "labels"]
    assert np.array_equal(np.asarray(result.image), np.asarray(result.draft))


def test_the_registry_opens_the_gate(engine, components, tmp_path):
    (plain,) = engine.generate(asked(avoidance=Avoidance.off()))
    plain.draft.save(tmp_path / "work.png")
    guarded = Engine(components, registry=index_works(components, [tmp_path / "work.png"]))
    gate = Gate(limits={"guidance": 1e6, "registry": 0.95})
    like, unlike = guarded.generate([asked(gate=gate), asked(gate=gate, prompt="tree", seed=8)])
    assert like.gate.opened
    assert not unlike.gate.opened


def test_thresholds_come_from_the_calibration(components):
    rng = np.random.default_rng(0)
    signals = rng.normal(1.0, 0.1, 2000)
    scores = {"ssim": signals / 2}
    calibration = calibrate(scores, "clean", signals={"guidance": signals})
    assert 0.002 <= np.mean(signals > calibration.gate["guidance"]) <= 0.005
    both = calibrate(scores, "clean", signals={"guidance": signals, "registry": rng.normal(0, 1, 2000)})
    assert np.mean(signals > both.gate["guidance"]) <= 0.0025
    engine = Engine(dataclasses.replace(components, calibration=calibration))
    (result,) = engine.generate(asked(gate=Gate()))
    assert result.gate.signals["guidance"].limit == calibration.gate["guidance"]


def test_a_gate_without_thresholds_stands_open(engine):
    (result,) = engine.generate(asked(gate=Gate()))
    assert result.gate.opened
    assert result.attempts[0].avoidance == Avoidance()


def test_an_unknown_signal_is_refused(engine):
    with pytest.raises(InvalidRequestError, match=r"unknown signal 'registry' in .*; known: guidance, agreement"):
        engine.generate(asked(gate=Gate(limits={"registry": 0.5})))


def test_a_draft_that_settles_early_looks_recalled():
    steps = np.arange(20)
    fresh, recalled = 1 + 0.02 * steps, np.where(steps < 6, 2.0, 0.5)
    assert early_guidance(fresh) < 1 < early_guidance(recalled) == 4.0
    assert early_guidance(3 * recalled) == early_guidance(recalled), "no model's scale matters"
    assert early_guidance(np.where(steps == 0, 100, fresh)) == early_guidance(fresh), "the first step says nothing"


@pytest.mark.parametrize("draft", [Stage(steps=4, guidance_scale=1.0), Stage(steps=2, guidance_scale=3.0)])
def test_what_cannot_be_measured_opens_the_gate(engine, draft):
    (result,) = engine.generate(asked(gate=SHUT, draft=draft))
    assert result.gate.opened
    assert decide({}, {"guidance": 1.0}, None).opened


def test_a_source_is_always_kept_away_from(engine):
    (result,) = engine.generate(asked(gate=SHUT, source=Image.new("RGB", (64, 64), "teal")))
    assert result.gate.opened
    assert result.attempts[0].avoidance == Avoidance()

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.mechanisms import Avoidance, MaskedAttention
from twig.engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from twig.engine.api.result import GateDecision, Score
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine
from twig.engine.judging.registry import index_works
from twig.engine.judging.similarity import similarity_maps
from twig.engine.models.checkpoint import load
from twig.engine.records.explaining import explanation_arrays, explanation_json, explanation_picture, explanation_record

STAGE = Stage(steps=4, guidance_scale=3.0)
ANY = SimilarityPolicy(rule="accept everything")


def asked(**changes):
    settings = {"prompt": "a red star", "draft": STAGE, "final": STAGE, "similarity": ANY, "explain": True} | changes
    return GenerationRequest(**settings)


@pytest.fixture(scope="module")
def explained(tiny_checkpoint, tmp_path_factory):
    """A result whose nearest registered work is its own plain draft."""
    components = load(tiny_checkpoint)
    path = tmp_path_factory.mktemp("works") / "draft.png"
    policy = Avoidance(masked_attention=MaskedAttention(tokens="words", stop=1.0), delayed_guidance=None)
    Engine(components).generate(asked(avoidance=Avoidance.off()))[0].draft.save(path)
    works = index_works(components, [path], keep_pictures=True)
    return Engine(components, registry=works).generate(asked(avoidance=policy))[0]


def scene(shift=0):
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((x - 24 - shift) ** 2 + (y - 30) ** 2 < 120).float()
    square = ((x - 40 - shift).abs() < 6).float() * ((y - 44).abs() < 6).float()
    return torch.stack([disc, square, 0.3 + 0.2 * disc])[None]


def test_maps_say_where_pictures_are_alike():
    same = similarity_maps(scene(), scene())
    assert same["raw"].min() > 0.999
    changed = scene()
    changed[..., 40:, :] = 1 - changed[..., 40:, :]
    half = similarity_maps(changed, scene())["raw"][0]
    assert half[:30].min() > 0.99
    assert half[50:].mean() < 0.5


def test_an_aligned_map_finds_a_moved_copy():
    maps = similarity_maps(scene(shift=6), scene())
    assert maps["raw"].mean() < 0.9
    assert maps["aligned"].nanmean() > 0.98
    assert maps["aligned"][..., :5].isnan().all(), "there the reference does not reach"


def test_an_explanation_maps_the_likeness_to_draft_and_work(explained):
    maps = explained.explanation.similarity
    assert set(maps) == {"reference", "reference_aligned", "work", "work_aligned"}
    assert all(values.shape == (64, 64) for values in maps.values())
    assert np.allclose(maps["reference"], maps["work"], atol=0.02), "the work is the draft, but for 8 bits"
    assert maps["reference"].mean() == pytest.approx(explained.scores["ssim"].value, abs=0.1)


def test_the_record_is_json_and_names_what_moved_and_what_is_close(explained):
    record = json.loads(explanation_json(explained))
    assert record["nearest"] == explained.attempts[0].nearest
    assert set(record["alike"]) == set(explained.explanation.similarity)
    assert record["attention_moved"]["3 star"] > 0
    assert record["gate"]["opened"] is True
    assert len(record["steps"]["guidance"]) == 4
    assert 0 <= record["overlap"] <= 1
    story = " ".join(record["sentences"])
    for told in ("Verdict: accepted.", "overlap the draft's by", "'star'", f"like registered work {record['nearest']}"):
        assert told in story


def test_the_arrays_open_without_pickle(explained):
    with np.load(io.BytesIO(explanation_arrays(explained)), allow_pickle=False) as arrays:
        assert arrays["similarity_work_aligned"].shape == (64, 64)
        assert np.array_equal(arrays["mask"], explained.mask)
        assert np.array_equal(arrays["mass_inside"], explained.explanation.mass_inside)


def test_the_picture_changes_with_what_is_close(explained):
    drawn = explanation_picture(explained)
    far = {name: np.full((64, 64), 0.0) for name in explained.explanation.similarity}
    other = explanation_picture(replace(explained, explanation=replace(explained.explanation, similarity=far)))
    assert drawn.size == other.size
    assert drawn.tobytes() != other.tobytes()


def test_the_picture_shows_what_the_rule_took_away(make_result, explanation):
    drawn = explanation_picture(make_result(explanation=explanation))
    unchanged = replace(explanation, mass_inside=explanation.neutral_inside)
    assert drawn.tobytes() != explanation_picture(make_result(explanation=unchanged)).tobytes()


@pytest.mark.parametrize(
    ("gate", "sentence"),
    [
        (None, "no gate decided"),
        (GateDecision(True, {"guidance": Score(0.5, None, True)}), "no gate decided"),
        (GateDecision(True, {"guidance": Score(0.5, 0.4, False)}), "on, for the draft looks recalled: guidance 0.5"),
        (GateDecision(False, {"guidance": Score(0.3, 0.4, True)}), "does not look recalled: guidance 0.3 (limit 0.4)"),
    ],
)
def test_a_sentence_says_what_the_gate_did(make_result, explanation, gate, sentence):
    assert sentence in explanation_record(make_result(explanation=explanation, gate=gate))["sentences"][1]


def test_a_delivered_draft_is_explained_too(tiny_checkpoint):
    engine = Engine.from_pretrained(tiny_checkpoint)
    (result,) = engine.generate(asked(gate=Gate(limits={"guidance": 1e6})))
    assert result.explanation.similarity == {}
    assert np.isnan(result.explanation.mass_inside).all()
    assert isinstance(explanation_picture(result), Image.Image)
    assert json.loads(explanation_json(result))["overlap"] is None


def test_an_explanation_that_was_not_asked_for_is_refused(make_result):
    for wanted in (explanation_picture, explanation_json, explanation_arrays):
        with pytest.raises(InvalidRequestError, match="explain=True"):
            wanted(make_result())

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import GateDecision, Score, Verdict
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine
from twig.engine.records.manifest import Machine, Manifest
from twig.engine.records.output import OutputFolder
from twig.engine.replay import compare, replay

HERE = Machine.here("cpu")


def test_the_same_result_replays_as_identical(make_result, model):
    outcome = compare(Manifest.of(make_result(), model), make_result(), HERE, make_result().image)
    assert outcome.identical
    compared = "draft, mask, label_map, control_map, image, saved picture, request"
    assert str(outcome) == (
        f"identical in {compared}, reading of the prompts, verdict, error, rule, scores, attempts, gate, rows, "
        "on the same kind of machine"
    )


def test_a_different_image_is_measured(make_result, model):
    result = make_result()
    array = np.asarray(result.image).copy()
    array[0, 0, 0] ^= 3
    outcome = compare(Manifest.of(result, model), make_result(image=Image.fromarray(array)), HERE, result.image)
    assert not outcome.identical
    assert outcome.same["draft"]
    assert not outcome.same["image"]
    assert 1 <= outcome.max_difference <= 3
    assert outcome.share == 1 / array.size
    assert "NOT identical" in str(outcome)
    assert f"at most {outcome.max_difference} of 255" in str(outcome)


def test_another_verdict_or_machine_is_said(make_result, model):
    manifest = Manifest.of(make_result(), model)
    elsewhere = HERE.model_copy(update={"processor": "abacus"})
    outcome = compare(manifest, make_result(verdict=Verdict.REFUSED), elsewhere)
    assert not outcome.identical
    assert "another kind of machine: differs in verdict" in str(outcome)


def altered(manifest, **changes):
    """The manifest as it reads when somebody edited its file."""
    return Manifest.model_validate_json(manifest.model_copy(update=changes).model_dump_json())


def attempt_with(manifest, **changes):
    return {"attempts": (replace(manifest.attempts[0], **changes),)}


GATE = GateDecision(True, {"guidance": Score(0.5, 0.4, False)})
ALTERED = {
    "verdict": lambda m: {"verdict": Verdict.REFUSED},
    "error": lambda m: {"error": "NaN"},
    "rule": lambda m: {"rule": "refuse if ssim > 0.9"},
    "request": lambda m: {"request": m.request.model_copy(update={"prompt": "a blue house"})},
    "scores": lambda m: attempt_with(m, scores=m.attempts[0].scores | {"ssim": Score(0.2500001, 0.5, True)}),
    "scores ": lambda m: attempt_with(m, scores=m.attempts[0].scores | {"ssim": Score(0.25, 0.6, True)}),
    "scores  ": lambda m: attempt_with(m, scores={"ssim": m.attempts[0].scores["ssim"]}),
    "attempts": lambda m: attempt_with(m, seed=12),
    "attempts ": lambda m: {"attempts": m.attempts * 2},
    "attempts  ": lambda m: attempt_with(m, nearest="work-7"),
    "attempts   ": lambda m: attempt_with(m, avoidance=Avoidance.off()),
    "attempts    ": lambda m: attempt_with(m, reasons=("ssim > 0.1: it is 0.25",)),
    "gate": lambda m: {"gate": replace(GATE, opened=False)},
    "gate ": lambda m: {"gate": replace(GATE, signals={"guidance": Score(0.5, 0.3, False)})},
    "gate  ": lambda m: {"gate": None},
    "rows": lambda m: {"draft_rows": 1},
    "image": lambda m: {"hashes": m.hashes.model_copy(update={"image": "00" * 32})},
    "mask": lambda m: {"hashes": m.hashes.model_copy(update={"mask": None})},
}


@pytest.mark.parametrize(("name", "change"), ALTERED.items(), ids=ALTERED)
def test_whatever_a_manifest_says_is_compared(make_result, model, name, change):
    result = make_result(gate=GATE)
    manifest = altered(Manifest.of(result, model))
    assert compare(manifest, result, HERE).identical
    outcome = compare(altered(manifest, **change(manifest)), result, HERE)
    assert not outcome.same[name.strip()]
    assert not outcome.identical


def test_a_picture_that_is_missing_or_altered_is_a_difference(make_result, model):
    result = make_result()
    manifest = Manifest.of(result, model, image="a.png")
    assert compare(manifest, result, HERE, result.image).identical
    assert "differs in saved picture" in str(compare(manifest, result, HERE, None))
    assert "differs in saved picture" in str(compare(manifest, result, HERE, Image.new("RGB", (16, 16))))


def test_scores_may_differ_in_their_last_digits_on_another_machine_alone(make_result, model):
    result = make_result()
    manifest = Manifest.of(result, model)
    near = altered(manifest, **attempt_with(manifest, scores=_scores(manifest, 0.2505), reasons=("ssim: 0.2505",)))
    far = altered(manifest, **attempt_with(manifest, scores=_scores(manifest, 0.26)))
    elsewhere = HERE.model_copy(update={"processor": "abacus"})
    assert not compare(near, result, HERE).identical
    assert compare(near, result, elsewhere).identical
    assert not compare(far, result, elsewhere).identical
    older = altered(near, libraries=near.libraries | {"torch": "1.0"})
    assert "the same kind of machine with other libraries" in str(compare(older, result, HERE))
    assert compare(older, result, HERE).identical


def _scores(manifest, ssim):
    return manifest.attempts[0].scores | {"ssim": Score(ssim, 0.5, True)}


def test_what_python_accounts_for_is_what_the_folder_keeps_and_replays_as_identical(tiny_checkpoint, tmp_path):
    engine = Engine.from_pretrained(tiny_checkpoint)
    source, mask = Image.new("RGB", (64, 64), "teal"), np.zeros((64, 64), bool)
    source.save(tmp_path / "photo.png")
    mask[10:40, 20:50] = True
    (result,) = engine.generate(
        GenerationRequest(
            prompt="a red star",
            source=tmp_path / "photo.png",
            mask=mask,
            final=Stage(steps=2),
            similarity=SimilarityPolicy(limits={"ssim": 1.0}),
        )
    )
    manifest = Manifest.from_json(result.manifest(engine).to_json())
    assert manifest.source.path == tmp_path / "photo.png"
    assert manifest.model.source == str(tiny_checkpoint)
    assert replay(manifest, engine, source=source, mask=mask).identical
    folder = OutputFolder.of(engine, tmp_path / "out")
    folder.prepare()
    kept = Manifest.load(folder.save(result).with_suffix(".json"))
    assert kept.model_copy(update={"image": None, "created": manifest.created}) == manifest
    assert replay(kept, engine, result.image, source, mask).identical

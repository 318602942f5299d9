import numpy as np
from PIL import Image

from twig.engine.api.result import Verdict
from twig.engine.records.manifest import Machine, Manifest
from twig.engine.replay import compare

HERE = Machine.here("cpu")


def test_the_same_result_replays_as_identical(make_result, model):
    outcome = compare(Manifest.of(make_result(), model), make_result(), HERE, make_result().image)
    assert outcome.identical
    assert "identical in draft, mask, label_map, control_map, image and verdict, on the same kind" in str(outcome)


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

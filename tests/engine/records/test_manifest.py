import hashlib
import json
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Verdict
from twig.engine.records.manifest import DIGITAL_SOURCE_TYPE, InputRecord, Manifest, pixel_hash, request_hash


class Engine:
    """An engine as far as accounting goes."""

    def __init__(self, model):
        self.model = model

    def manifest(self, result):
        return Manifest.of(result, self.model)


def test_a_manifest_comes_back_from_its_file_as_it_was(tmp_path, make_result, model):
    manifest = Manifest.of(make_result(), model, image="a.png")
    manifest.save(tmp_path / "a.json")
    assert Manifest.load(tmp_path / "a.json") == manifest


def test_a_manifest_accounts_for_the_image(tmp_path, make_result, model):
    result = make_result()
    Manifest.of(result, model, image="a.png").save(tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["request"]["prompt"] == "a red star"
    assert written["request"]["seed"] == 7
    assert written["attempts"][0]["seed"] == 11
    assert written["attempts"][0]["avoidance"]["moved_control"]["scale"] == 2
    score = {"value": 0.25, "limit": 0.5, "passed": True, "direction": "similarity"}
    assert written["attempts"][0]["scores"]["ssim"] == score
    assert written["calibration"] == "test-1"
    assert written["rows"] == 76
    assert written["hashes"]["image"] == pixel_hash(result.image)
    assert written["hashes"]["draft"] == pixel_hash(result.draft)
    assert written["hashes"]["mask"] == pixel_hash(result.mask)
    assert written["model"]["hashes"] == model.hashes
    assert written["libraries"]["twig-engine"]
    assert written["digital_source_type"] == DIGITAL_SOURCE_TYPE


def test_a_manifest_holds_the_prompt_and_is_its_owners_alone(tmp_path, make_result, model):
    Manifest.of(make_result(), model).save(tmp_path / "a.json")
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o600


def test_a_failed_result_has_a_manifest_too(make_result, model):
    failed = make_result(verdict=Verdict.FAILED, image=None, draft=None, mask=None, attempts=(), error="NaN")
    manifest = Manifest.of(failed, model)
    assert manifest.hashes.image is None
    assert manifest.error == "NaN"


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2}', "not json", '{"a": 1}'])
def test_another_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InvalidRequestError, match=r"a\.json is not a manifest of Twig"):
        Manifest.load(tmp_path / "a.json")


def test_an_unknown_key_is_refused(tmp_path, make_result, model):
    Manifest.of(make_result(), model).save(tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text()) | {"surprise": 1}
    (tmp_path / "a.json").write_text(json.dumps(written))
    with pytest.raises(InvalidRequestError, match="surprise"):
        Manifest.load(tmp_path / "a.json")


def test_pixel_hash_is_what_its_description_says():
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert pixel_hash(pixels) == hashlib.sha256(b"|u1(2, 2, 3)" + bytes(range(12))).hexdigest()
    assert pixel_hash(pixels[::-1]) != pixel_hash(pixels)
    assert pixel_hash(pixels.reshape(2, 6)) != pixel_hash(pixels)


def test_a_manifest_travels_and_can_be_hashed(make_result, model):
    manifest = make_result(request=GenerationRequest(prompt="a", mask=np.ones((16, 16), bool))).manifest(Engine(model))
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert hash(again) == hash(manifest)
    assert Manifest.from_json(json.loads(manifest.to_json())) == manifest
    for mode in ("validation", "serialization"):
        assert Manifest.model_json_schema(mode=mode)["title"] == "Manifest"


def test_a_manifest_from_before_scores_had_directions_is_read_as_it_was(tmp_path):
    """Written by the version before requests' pictures went to JSON, of a source and a mask, with two attempts."""
    path = Path(__file__).with_name("manifest-of-before.json")
    manifest, written = Manifest.load(path), json.loads(path.read_text())
    assert request_hash(manifest.request) == manifest.request_sha256
    assert json.loads(manifest.to_json())["request"] == written["request"]
    first = manifest.attempts[0].scores
    assert str(first["hausdorff"]) == "hausdorff 0.224 <= 3"
    assert first["hausdorff"].crossed
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_request_hash_does_not_know_the_pictures(make_result):
    bare = GenerationRequest(prompt="a")
    brought = bare.model_copy(update={"source": Image.new("RGB", (8, 8)), "mask": np.ones((8, 8), bool)})
    assert request_hash(brought) == request_hash(bare)


def test_what_the_user_brought_is_recorded_and_not_kept(tmp_path, make_result, model):
    source, mask = Image.new("RGB", (16, 16), "teal"), np.eye(16, dtype=bool)
    source.save(tmp_path / "s.png")
    request = GenerationRequest(prompt="a", source=source, mask=mask)
    manifest = make_result(request=request).manifest(Engine(model))
    assert manifest.source == InputRecord(path=None, sha256=pixel_hash(source))
    assert manifest.mask == InputRecord(path=None, sha256=pixel_hash(mask))
    assert manifest.request == GenerationRequest(prompt="a")
    assert {"source", "mask"}.isdisjoint(json.loads(manifest.to_json())["request"])
    lying = request.model_copy(update={"source": tmp_path / "s.png"})
    assert Manifest.of(make_result(request=lying), model).source == InputRecord.of(tmp_path / "s.png", source)


def test_request_hash_tells_requests_apart():
    request = GenerationRequest(prompt="a", seed=1)
    assert request_hash(request) == request_hash(GenerationRequest(seed=1, prompt="a"))
    assert request_hash(request) != request_hash(request.model_copy(update={"seed": 2}))


def test_an_input_read_from_a_file_is_found_again(tmp_path):
    pixels = np.ones((2, 2), dtype=bool)
    assert InputRecord.of(tmp_path / "m.png", pixels).path == tmp_path / "m.png"
    assert InputRecord.of(None, pixels).path is None

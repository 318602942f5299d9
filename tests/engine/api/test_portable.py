"""Values that travel: to JSON and back without loss, and what JSON cannot bring in."""

import base64
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from twig.engine.api import json_fields
from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.event import Event, State
from twig.engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Attempt, Explanation, GateDecision, GenerationResult, Score

MASK = np.zeros((9, 13), dtype=bool)
MASK[2:5, 3:11] = True


def picture(mode="RGB", seed=0, size=(13, 9)):
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def data_of(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def whole(make_result, explanation):
    """A result with everything that a result can have, NaN and infinity among it."""
    maps = {"reference": np.array([[np.nan, -0.5]], np.float32), "work": np.full((2, 3), 0.1)}
    base = make_result()
    measured = base.scores | {
        "own": Score(math.nan, 0.5, False, direction="distance"),
        "low": Score(-math.inf, None, True),
    }
    attempts = (replace(base.attempts[0], scores=measured, early=((3, True), (7, False)), reasons=("ssim > 0.5",)),)
    return make_result(
        request=GenerationRequest(
            prompt="ein Stern ☆",
            source=picture(),
            mask=MASK,
            timeout=61.5,
            similarity=SimilarityPolicy(limits={"hausdorff": 12.5}),
            gate=Gate(limits={"guidance": 1.5}),
        ),
        attempts=attempts,
        gate=GateDecision(True, {"guidance": Score(math.nan, 0.4, False)}, "work-1", 21),
        explanation=replace(explanation, similarity=maps),
        label_map=np.array([[0, 149, 65535]], np.uint16),
    )


def values(whole):
    """One of each kind that travels."""
    return [
        whole.request,
        GenerationRequest(prompt="a"),
        whole,
        replace(whole, image=None, draft=None, mask=None, attempts=(), gate=None, explanation=None, error="NaN"),
        whole.gate,
        whole.attempts[0],
        whole.explanation,
        Event(3, 1, State.SEGMENTED, 0, 20, 0, picture(), MASK),
        Event(3, 1, State.ACCEPTED, attempt=1, result=whole),
    ]


def test_whatever_travels_comes_back_equal(whole):
    for value in values(whole):
        again = type(value).from_json(value.to_json())
        assert again == value
        assert hash(again) == hash(value)
        assert type(value).from_json(json.loads(value.to_json())) == value
        assert again.to_json() == value.to_json()


def test_what_comes_back_is_of_the_same_types(whole):
    again = GenerationResult.from_json(whole.to_json())
    assert again.image.mode == "RGB"
    assert np.array_equal(again.image, whole.image)
    assert np.array_equal(again.request.source, whole.request.source)
    assert (again.mask.dtype, again.label_map.dtype) == (np.dtype(bool), np.dtype(np.uint16))
    assert again.explanation.similarity["reference"].dtype == np.float32
    assert again.scores["hausdorff"].value == math.inf
    assert math.isnan(again.scores["own"].value)
    assert again.request.timeout == 61.5
    assert again.request.gate.limits == {"guidance": 1.5}


def test_pictures_can_be_left_out(whole):
    bare = GenerationResult.from_json(whole.to_json(pictures=False))
    gone = dict.fromkeys(("image", "draft", "mask", "label_map", "control_map"))
    request = whole.request.model_copy(update={"source": None, "mask": None})
    assert bare == replace(whole, request=request, **gone)


def test_frames_other_than_rgb_travel_as_they_are_seen():
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        request = GenerationRequest(prompt="a", source=picture(mode))
        assert GenerationRequest.from_json(request.to_json()) == request


def test_a_picture_on_the_disk_travels_by_its_pixels(tmp_path):
    picture().save(tmp_path / "a.png")
    request = GenerationRequest(prompt="a", source=tmp_path / "a.png")
    assert GenerationRequest.from_json(request.to_json()).source.tobytes() == picture().tobytes()
    (tmp_path / "a.png").unlink()
    with pytest.raises(Exception, match="no picture at"):
        request.to_json()


@pytest.mark.parametrize(("format", "prefix"), [("PNG", ""), ("JPEG", "data:image/jpeg;base64,"), ("WEBP", "")])
def test_png_jpeg_and_webp_are_taken(format, prefix):
    text = prefix + data_of(picture(), format)
    assert GenerationRequest.from_json({"prompt": "a", "source": text}).source.size == (13, 9)
    assert GenerationRequest(prompt="a", source=text).source.size == (13, 9)


def doors():
    """Ways in which what was JSON becomes a request; a web framework takes the last."""
    return (
        GenerationRequest.from_json,
        lambda data: GenerationRequest.from_json(json.dumps(data)),
        lambda data: GenerationRequest.model_validate_json(json.dumps(data)),
        GenerationRequest.model_validate,
        TypeAdapter(GenerationRequest).validate_python,
    )


@pytest.mark.parametrize("field", ["source", "mask"])
def test_a_path_never_comes_from_json(tmp_path, field):
    picture().save(tmp_path / "secret.png")
    paths = ["/etc/passwd", "/etc/passwd1", str(tmp_path / "secret.png"), f"file://{tmp_path}/secret.png", "-", ""]
    for text in (*paths, "http://localhost/a.png", "data:image/png;base64,/etc/passwd"):
        for door in doors():
            with pytest.raises(ValueError, match=rf"(?s){field}.*(never a path|is no picture)"):
                door({"prompt": "a", field: text})


def test_a_path_among_plain_values_is_no_json(tmp_path):
    with pytest.raises(InvalidRequestError, match="what JSON cannot"):
        GenerationRequest.from_json({"prompt": "a", "source": tmp_path})
    assert GenerationRequest(prompt="a", source=tmp_path).source == tmp_path


@pytest.mark.parametrize("format", ["BMP", "GIF", "TIFF", "PPM"])
def test_other_formats_are_refused(format):
    with pytest.raises(InvalidRequestError, match="JPEG, PNG, WEBP"):
        GenerationRequest.from_json({"prompt": "a", "source": data_of(picture(), format)})


def test_pictures_are_bounded_in_bytes_and_pixels(monkeypatch):
    bomb = data_of(Image.new("1", (2**14, 2**13)))
    assert len(bomb) < 2**16
    with pytest.raises(InvalidRequestError, match="more than 67108864 pixels"):
        GenerationRequest.from_json({"prompt": "a", "source": bomb})
    with pytest.raises(InvalidRequestError, match="at most 134217728 characters"):
        GenerationRequest.from_json({"prompt": "a", "source": "A" * (json_fields.MAX_TEXT + 4)})


def test_what_is_wrong_is_named_and_not_repeated():
    with pytest.raises(InvalidRequestError, match=r"no GenerationRequest: final\.steps: .*less than or equal to 1000"):
        GenerationRequest.from_json({"prompt": "secret", "final": {"steps": 2000}})
    with pytest.raises(InvalidRequestError, match="surprise"):
        Event.from_json('{"id": 1, "index": 0, "state": "queued", "surprise": 1}')
    with pytest.raises(InvalidRequestError, match="the whole: Invalid JSON"):
        GenerationResult.from_json("{")


def test_numbers_that_do_not_fill_their_shape_are_refused(explanation):
    written = json.loads(explanation.to_json())
    written["guidance"]["shape"] = [10**9, 10**9]
    with pytest.raises(InvalidRequestError, match=r"guidance.*bytes of data are no float64 array"):
        Explanation.from_json(written)


def test_every_kind_has_a_schema(whole):
    for kind in {type(value) for value in values(whole)}:
        for mode in ("validation", "serialization"):
            schema = kind.model_json_schema(mode=mode)
            assert json.loads(json.dumps(schema))["type"] == "object"
    together = TypeAdapter(list[Event] | GenerationRequest | dict[str, GenerationResult | None])
    definitions = together.json_schema(mode="serialization")["$defs"]
    assert {"Event", "GenerationRequest", "GenerationResult", "Explanation"} <= definitions.keys()
    text = definitions["GenerationRequest"]["properties"]["source"]["anyOf"][0]
    assert (text["type"], text["contentEncoding"]) == ("string", "base64")


def test_requests_are_compared_and_hashed_with_what_they_bring(tmp_path):
    def ask(**changes):
        return GenerationRequest(**{"prompt": "a", "source": picture(), "mask": MASK.copy(), **changes})

    assert ask() == ask()
    assert hash(ask()) == hash(ask())
    others = [
        ask(mask=~MASK),
        ask(mask=MASK.T),
        ask(mask=None),
        ask(source=picture(seed=1)),
        ask(source=picture(size=(9, 13))),
        ask(source=None),
        ask(source=tmp_path),
        ask(seed=1),
        ask(similarity=SimilarityPolicy(limits={"ssim": 0.5})),
        ask(similarity=SimilarityPolicy(limits={"ssim": 0.6})),
        ask(gate=Gate(limits={})),
    ]
    assert len({ask(), *others}) == len(others) + 1
    assert ask() != "a"


def test_results_are_compared_and_hashed(whole):
    array = np.asarray(whole.image).copy()
    array[0, 0, 0] ^= 1
    others = [replace(whole, image=Image.fromarray(array)), replace(whole, index=1), replace(whole, mask=None)]
    assert len({whole, replace(whole), *others}) == 4


def test_values_stay_as_they_are():
    with pytest.raises(AttributeError, match="cannot assign"):
        Event(0, 0, State.QUEUED).step = 1
    with pytest.raises(ValidationError, match="frozen"):
        GenerationRequest(prompt="a").source = Path("a")


def test_a_score_says_how_it_stands_to_its_limit():
    scores = Attempt(
        0,
        None,
        {
            "tile_l2": Score(0.1, 0.161, False),
            "ssim": Score(0.6, 0.5, False),
            "registry_phash": Score(30.0, 12.0, True),
            "ms_ssim": Score(0.25, 0.5, True),
            "edge_f1": Score(0.25, None, True),
            "mask_iou": Score(math.nan, 0.5, False),
            "mine": Score(3.0, 4.0, False, direction="distance"),
        },
        1,
        1,
    ).scores
    assert {str(score): score.crossed for score in scores.values()} == {
        "tile_l2 0.1 <= 0.161": True,
        "ssim 0.6 >= 0.5": True,
        "registry_phash 30 >= 12": False,
        "ms_ssim 0.25 <= 0.5": False,
        "edge_f1 0.25": False,
        "mask_iou nan, which cannot be held against 0.5": True,
        "mine 3 <= 4": True,
    }
    assert [scores[name].direction for name in ("tile_l2", "ssim", "registry_phash")] == [
        "distance",
        "similarity",
        "distance",
    ]


def test_a_result_says_why(whole, make_result):
    assert whole.reasons == ("ssim > 0.5",)
    assert make_result(attempts=()).reasons == ()

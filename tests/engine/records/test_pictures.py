import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import GateDecision, Score, Verdict
from twig.engine.records.drawing import heat
from twig.engine.records.pictures import contact_sheet, difference, gate_text, png, verdict_text

RED = (178, 24, 43)


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}


def test_a_png_says_that_a_trained_model_made_it_and_keeps_its_pixels(make_result):
    image = make_result().image
    decoded = Image.open(io.BytesIO(png(image)))
    assert decoded.tobytes() == image.tobytes()
    packet = ElementTree.fromstring(decoded.info["XML:com.adobe.xmp"])
    found = packet.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert found.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_a_png_holds_no_prompt(make_result):
    assert b"red star" not in png(make_result().image)


def test_a_sheet_shows_draft_mask_final_and_difference(make_result):
    result = make_result()
    flat = Image.new("RGB", (16, 16), (10, 200, 30)), Image.new("RGB", (16, 16), (10, 20, 200))
    sheet = contact_sheet([make_result(draft=flat[0], image=flat[1])])
    shown = colours(sheet)
    assert {(10, 200, 30), (10, 20, 200), (0, 0, 0), tuple(heat(np.array(180 / 255)))} <= shown
    assert contact_sheet([result, result]).height > sheet.height


def test_a_sheet_marks_a_failed_score(make_result):
    assert RED not in colours(contact_sheet([make_result()]))
    attempts = make_result().attempts
    failed = attempts[0].scores | {"ssim": Score(0.75, 0.5, False)}
    attempts = (replace(attempts[0], scores=failed),)
    assert RED in colours(contact_sheet([make_result(verdict=Verdict.REFUSED, attempts=attempts)]))


def test_a_sheet_takes_results_that_lack_pictures(make_result):
    source = GenerationRequest(prompt="a", source=Image.new("RGB", (8, 8)))
    failed = make_result(verdict=Verdict.FAILED, image=None, draft=None, mask=None, attempts=(), error="NaN")
    sheet = contact_sheet([make_result(request=source, draft=None), failed])
    assert sheet.width == contact_sheet([make_result()]).width


@pytest.mark.parametrize("size", [(8, 24), (512, 300), (192, 192)])
def test_a_sheet_fits_pictures_of_any_size(make_result, size):
    image = Image.new("RGB", size, (1, 2, 3))
    assert (1, 2, 3) in colours(contact_sheet([make_result(draft=image, image=image, mask=None)]))


@pytest.mark.parametrize(
    ("verdict", "attempts", "text"),
    [
        (Verdict.ACCEPTED, 1, "accepted"),
        (Verdict.ACCEPTED, 2, "accepted after 1 retry"),
        (Verdict.REFUSED, 3, "refused after 2 retries"),
    ],
)
def test_a_verdict_counts_its_retries(make_result, verdict, attempts, text):
    assert verdict_text(make_result(verdict=verdict, attempts=make_result().attempts * attempts)) == text


def test_a_gate_says_what_it_saw_and_a_verdict_that_it_stayed_shut(make_result):
    shut = GateDecision(False, {"agreement": Score(0.312, 0.737, True), "guidance": Score(0.9, None, True)})
    assert gate_text(shut) == "shut, the draft does not look recalled: agreement 0.312 (limit 0.737), guidance 0.9"
    assert gate_text(replace(shut, opened=True)).startswith("open: agreement")
    assert verdict_text(make_result(gate=shut)) == "accepted, the plain picture"
    assert verdict_text(make_result(gate=shut, attempts=make_result().attempts * 2)) == "accepted after 1 retry"


def test_a_difference_is_white_where_pictures_agree():
    black = Image.new("RGB", (4, 4))
    half = Image.new("RGB", (4, 4))
    half.paste((0, 255, 0), (0, 0, 2, 4))
    values = np.asarray(difference(black, half))
    assert (values[:, 2:] == 255).all()
    assert (values[:, :2] == heat(np.array(1.0))).all()
    assert difference(None, half) is None


def test_heat_tells_signs_and_missing_values_apart():
    below, zero, above, missing = heat(np.array([-1.0, 0.0, 1.0, np.nan])).tolist()
    assert zero == [255, 255, 255]
    assert below[2] > below[0]
    assert above[0] > above[2]
    assert missing[0] == missing[1] == missing[2] != 255

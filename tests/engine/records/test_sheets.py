from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.choices import Preset
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import Gate, GenerationRequest
from twig.engine.api.result import Score, Verdict
from twig.engine.records.drawing import FONT, heat, wrapped
from twig.engine.records.sheets import FULL, _asked, _columns, _common, contact_sheet, preset_name

RED = (178, 24, 43)


def colours(image: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}


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


def scored(make_result, **scores):
    """A refused result with these scores."""
    attempt = replace(make_result().attempts[0], scores=scores)
    return make_result(verdict=Verdict.REFUSED, attempts=(attempt,))


def red_columns(sheet):
    """Which of the four columns hold red text below the pictures."""
    below = np.asarray(sheet)[-100:]
    return {int(x) * 4 // sheet.width for x in np.nonzero((below == RED).all(-1).any(0))[0]}


@pytest.mark.parametrize(("name", "column"), [("mask_iou", 1), ("ssim", 2)])
def test_a_score_stands_under_the_picture_it_belongs_to(make_result, name, column):
    assert red_columns(contact_sheet([scored(make_result, **{name: Score(0.9, 0.5, False)})])) == {column}


def test_a_sheets_caption_grows_with_its_prompt_and_is_cut_off(make_result):
    short, long, endless = (contact_sheet([make_result("a red star " * count)]).height for count in (1, 20, 500))
    assert short < long < endless < short + 100


def test_each_request_has_its_own_caption(make_result):
    first, second = make_result("a star"), make_result("a moon")
    same = contact_sheet([first, replace(first, index=1)])
    assert contact_sheet([first, second]).height > same.height


def test_a_sheet_of_many_pictures_is_a_grid_that_shows_each(make_result):
    request, tones = GenerationRequest(prompt="a", num_images=64), [(index * 3, 99, 7) for index in range(64)]
    results = [
        make_result(request=request, index=index, image=Image.new("RGB", (8, 8), tone))
        for index, tone in enumerate(tones)
    ]
    sheet = contact_sheet(results)
    assert set(tones) <= colours(sheet)
    assert sheet.height < 1.5 * sheet.width
    assert contact_sheet(results[:FULL]).width < sheet.width


def test_a_grid_takes_results_that_lack_pictures_and_says_what_was_crossed(make_result):
    request = GenerationRequest(prompt="a", num_images=9)
    lost = make_result(request=request, verdict=Verdict.FAILED, image=None, draft=None, attempts=(), error="NaN")
    assert RED not in colours(contact_sheet([lost] * 9))
    refused = replace(scored(make_result, ssim=Score(0.75, 0.5, False)), request=request)
    assert RED in colours(contact_sheet([lost] * 8 + [refused]))


@pytest.mark.parametrize("preset", list(Preset))
def test_a_request_is_known_by_its_preset(preset):
    request = GenerationRequest(prompt="a", **preset.settings)
    assert preset_name(request) == preset
    turned = request.model_copy(update={"gate": Gate() if request.gate is None else None})
    without = Preset.OFF if preset is Preset.PLAIN else preset
    assert preset_name(turned) in ((f"{preset}, always", f"{preset}, gated") if without is preset else (without,))


def test_own_avoidance_is_called_so():
    assert preset_name(GenerationRequest(prompt="a", avoidance=Avoidance().escalated(3))) == "own avoidance"
    assert preset_name(GenerationRequest(prompt="a", gate=Gate(shut=True))) == "own avoidance"


def test_lines_are_wrapped_to_their_width():
    lines = wrapped(f"a red star and {'x' * 200} on a green field", 120)
    assert all(FONT.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == f"aredstarand{'x' * 200}onagreenfield"
    assert wrapped("", 120) == [""]


def test_a_sheet_of_many_requests_says_of_each_picture_what_only_that_has(make_result):
    alike = [make_result("a star", request=GenerationRequest(prompt="a star", seed=7)) for _ in range(9)]
    seeds = [make_result(request=GenerationRequest(prompt="a star", seed=seed)) for seed in range(9)]
    prompts = [make_result(request=GenerationRequest(prompt=f"a star {number}", seed=7)) for number in range(9)]
    heights = [contact_sheet(results).height for results in (alike, seeds, prompts)]
    assert heights[0] < heights[1], "a seed under each"
    assert [asked_apart(results) for results in (alike, seeds, prompts)] == [set(), {"seed"}, {"prompt"}]


def asked_apart(results):
    """What is said under each picture, for they do not have it in common."""
    return _asked(results[0]).keys() - _common(results).keys()


def test_what_was_not_measured_is_said_to_be_so(make_result):
    attempt = replace(make_result().attempts[0], scores={})
    lines = _columns(make_result(verdict=Verdict.NOT_JUDGED, attempts=(attempt,), mask=None))
    assert [[text for text, _ in column] for column in lines[1:]] == [[], ["not measured"], []]

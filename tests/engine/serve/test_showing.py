"""Contact sheets and maps in answers: there when asked for, and never a way to see what is withheld."""

import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

from servers import running
from twig.engine.records.drawing import fitted

ASKED = {"seed": 5, "always": True, "explain": True, "sheet": True, "draft": True}
REFUSE = {"rule": "refuse if ssim > -1", "retries": 0}


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def shows(sheet, picture):
    """Whether a sheet shows a picture in one of its cells."""
    pixels, cell = np.asarray(sheet.convert("RGB")), np.asarray(fitted(picture.convert("RGB")))
    corners = np.argwhere((pixels[: -cell.shape[0], : -cell.shape[1]] == cell[0, 0]).all(-1))
    return any(np.array_equal(pixels[y : y + cell.shape[0], x : x + cell.shape[1]], cell) for y, x in corners)


@pytest.fixture(scope="module")
def final(client):
    return client.images.generate(prompt="a red star", extra_body={"twig": ASKED}).data[0]


@pytest.fixture(scope="module")
def refusal(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a red star", extra_body={"twig": ASKED | REFUSE})
    return caught.value.body["twig"]


def test_a_sheet_shows_the_final_unless_it_is_withheld(final, refusal):
    drawn, draft = opened(final.b64_json), opened(final.twig["draft"])
    assert shows(opened(final.twig["sheet"]), drawn)
    assert shows(opened(refusal["sheet"]), draft)
    assert not shows(opened(refusal["sheet"]), drawn)


def test_maps_are_heat_on_clear_ground(final, refusal):
    for told in (final.twig, refusal):
        maps = told["explanation"]["maps"]
        assert {"labels", "control", "reference"} <= maps.keys()
        heat = opened(maps["reference"])
        assert (heat.mode, heat.size) == ("RGBA", (64, 64))
    assert np.array_equal(
        *(np.asarray(opened(each["explanation"]["maps"]["reference"])) for each in (final.twig, refusal))
    )


def test_where_drafts_are_not_shown_sheets_are_not_either_and_a_photos_mask_is(served_engine, plain_config):
    with running(served_engine, plain_config.with_("bounds", drafts=False)) as server:
        client = server.client()
        with pytest.raises(openai.PermissionDeniedError, match="sheet"):
            client.images.generate(prompt="a red star", extra_body={"twig": {"sheet": True}})
        photo = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(photo, "PNG")
        options = {"mask": True}
        answer = client.images.edit(image=photo.getvalue(), prompt="a red star", extra_body={"twig": options})
        assert answer.data[0].twig["mask"]

"""Edits through the real client: a photo takes the draft's place, a mask over it steers, and nothing else goes on."""

import base64
import io

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from servers import running

PROMPT = "a red star on a green field"


def encoded(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photo(client) -> Image.Image:
    """A star that the model drew."""
    (item,) = client.images.generate(prompt=PROMPT, extra_body={"twig": {"draft": True, "steps": 6, "seed": 2}}).data
    return Image.open(io.BytesIO(base64.b64decode(item.twig["draft"]))).convert("RGB")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_photo_takes_the_drafts_place(client, photo, format):
    wanted = {"seed": 4, "draft": True, "mask": True}
    answer = client.images.edit(image=encoded(photo, format), prompt=PROMPT, extra_body={"twig": wanted})
    told = answer.data[0].twig
    assert told["seed"] == 4
    assert "draft" not in told
    assert told["mask"]


def test_a_mask_says_what_is_kept_away_from(client, photo):
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[10:40, 20:50] = 0
    mask = photo.copy()
    mask.putalpha(Image.fromarray(alpha))
    answer = client.images.edit(
        image=("photo.png", encoded(photo)),
        mask=("mask.png", encoded(mask)),
        prompt=PROMPT,
        extra_body={"twig": {"mask": True}},
    )
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].twig["mask"]))).convert("L")) > 127
    assert np.array_equal(seen, alpha == 0)


def test_an_edit_streams(client, photo):
    events = list(client.images.edit(image=encoded(photo), prompt=PROMPT, stream=True, partial_images=1,
                                     extra_body={"twig": {"steps": 4}}))  # fmt: skip
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def big(size) -> bytes:
    return encoded(Image.new("1", size))


BAD = [
    (b"no picture", "invalid_image", "image"),
    (b"GIF89a" + b"\0" * 100, "invalid_image", "image"),
    (big((5000, 5000)), "invalid_image", "image"),
]


@pytest.mark.parametrize(("data", "code", "param"), BAD)
def test_what_is_no_picture_that_is_read_here_is_refused(client, data, code, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=data, prompt=PROMPT)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_pictures_that_do_not_fit_or_are_too_many_are_refused(client, photo):
    data = encoded(photo)
    with pytest.raises(openai.BadRequestError, match="one size"):
        client.images.edit(image=data, mask=big((32, 64)), prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="several came"):
        client.images.edit(image=[data, data], prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="nothing to keep away from"):
        client.images.edit(image=data, mask=encoded(Image.new("L", (64, 64))), prompt=PROMPT)
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=data, prompt=PROMPT, input_fidelity="high")
    assert caught.value.code == "unsupported_parameter"


def test_a_plain_preset_draws_once_and_takes_no_photo(served_engine, plain_config, photo):
    with running(served_engine, plain_config.with_("drawing", preset="plain")) as server:
        client = server.client()
        told = client.images.generate(prompt=PROMPT, extra_body={"twig": {"seed": 2, "mask": True}}).data[0].twig
        assert (told["verdict"], told["scores"], "mask" in told) == ("not judged", {}, False)
        assert (
            2 * told["rows"]
            == client.images.generate(prompt=PROMPT, extra_body={"twig": {"seed": 2, "preset": "off"}})
            .data[0]
            .twig["rows"]
        )
        with pytest.raises(openai.BadRequestError, match="for edits there are off, gentle, fast, default, strict"):
            client.images.edit(image=encoded(photo), prompt=PROMPT)
        client.images.edit(image=encoded(photo), prompt=PROMPT, extra_body={"twig": {"preset": "off"}})


def post(served, **form):
    return httpx2.post(f"{served.url}/v1/images/edits", **form)


def test_forms_are_checked_as_bodies_are(served, photo):
    file = {"image": ("a.png", encoded(photo), "image/png")}
    for fields, code in (
        ({"prompt": "x", "twig[sead]": "1"}, "unknown_parameter"),
        ({"prompt": "x", "twig[always]": "yes"}, "invalid_value"),
        ({"prompt": "x", "image_url": "file:///etc/passwd"}, "unknown_parameter"),
        ({"prompt": ["x", "y"]}, "invalid_value"),
        ({}, "missing_required_parameter"),
        ({f"field{i}": "x" for i in range(100)}, "invalid_form"),
    ):
        answer = post(served, data=fields, files=file)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    answer = post(served, data={"prompt": "x"}, files={"mask": file["image"]})
    assert answer.json()["error"]["code"] == "missing_required_parameter"
    answer = post(served, content=b"broken", headers={"content-type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 400
    huge = {"image": ("a.png", b"\0" * (2**24 + 1), "image/png")}
    assert post(served, data={"prompt": "x"}, files=huge).status_code == 413

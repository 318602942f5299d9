"""Pictures through the real client of the OpenAI API."""

import base64
import io
import json
import re
import socket
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from servers import wait_for

REFUSE = {"rule": "refuse if ssim > -1", "retries": 0}
PROMPT = "a red star on a green field"


def picture(item) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def test_a_line_of_the_client_draws_a_picture(client, served_engine):
    answer = client.images.generate(prompt=PROMPT, extra_body={"twig": {"seed": 5}})
    (item,) = answer.data
    image, told = picture(item), item.twig
    assert (image.format, image.size) == ("PNG", (64, 64))
    assert "trainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]
    assert (answer.output_format, answer.size) == ("png", "64x64")
    assert told["verdict"] == "accepted"
    assert told["seed"] == 5
    assert told["scores"]["ssim"].keys() == {"value", "operator", "limit", "crossed"}
    assert answer.usage.output_tokens == told["rows"] > 0
    again = client.images.generate(prompt=PROMPT, extra_body={"twig": {"seed": 5}})
    assert np.array_equal(np.asarray(picture(again.data[0])), np.asarray(image))


def test_prompts_are_read_with_weights_unless_said_otherwise(client):
    weighted, plain, skipping = (
        client.images.generate(prompt="a (red:1.5) star BREAK moon", extra_body={"twig": {"seed": 5, **options}})
        for options in ({}, {"prompt_syntax": "plain"}, {"clip_skip": 1})
    )
    assert weighted.usage.input_tokens == 5 + 3
    assert plain.usage.input_tokens > weighted.usage.input_tokens
    assert len({answer.data[0].b64_json for answer in (weighted, plain, skipping)}) == 3


@pytest.mark.parametrize("document", ["README.md", "engine/serve/README.md"])
def test_the_documents_lines_draw_a_picture(served, capsys, document):
    text = (Path(__file__).parents[3] / document).read_text()
    (lines,) = re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    known: dict = {}
    exec(lines.replace("http://127.0.0.1:8000", served.url), known)
    assert known["client"].models.list().data[0].id == "twig"
    assert capsys.readouterr().out.startswith("accepted" if "print" in lines else "")


def test_a_client_chooses_among_the_operators_adapters(client):
    def drawn(**options):
        answer = client.images.generate(prompt=PROMPT, extra_body={"twig": {"seed": 5, **options}})
        return np.asarray(picture(answer.data[0])).astype(int)

    plain, inked = drawn(), drawn(lora={"ink": 8.0})
    assert np.abs(plain - inked).max() > 1
    assert np.abs(drawn(lora={"ink": 8.0}, draft_lora={}) - plain).max() > 1
    with pytest.raises(openai.BadRequestError, match=r"twig\.lora: the adapter 'oil' .* there is ink"):
        drawn(lora={"oil": 1.0})
    with pytest.raises(openai.BadRequestError, match=r"twig\.draft_lora\.ink"):
        drawn(draft_lora={"ink": 1000})


def test_without_a_seed_pictures_differ_and_the_seed_is_told(client):
    seeds = {client.images.generate(prompt=PROMPT).data[0].twig["seed"] for _ in range(2)}
    assert len(seeds) == 2


@pytest.mark.parametrize(("format", "compression"), [("jpeg", 40), ("webp", None)])
def test_several_pictures_in_other_formats(client, format, compression):
    extra = {} if compression is None else {"output_compression": compression}
    answer = client.images.generate(
        prompt=PROMPT, n=2, output_format=format, size="64x64", model="gpt-image-1", **extra
    )
    images = [picture(item) for item in answer.data]
    assert [image.format.lower() for image in images] == [format, format]
    assert b"trainedAlgorithmicMedia" in images[0].info["xmp"]
    assert [item.twig["index"] for item in answer.data] == [0, 1]


def test_what_is_asked_for_comes_along(client):
    wanted = {"draft": True, "mask": True, "explain": True, "manifest": True, "always": True, "seed": 1}
    (item,) = client.images.generate(prompt=PROMPT, extra_body={"twig": wanted}).data
    told = item.twig
    for name in ("draft", "mask"):
        assert Image.open(io.BytesIO(base64.b64decode(told[name]))).size == (64, 64)
    assert told["manifest"]["request"]["prompt"] == PROMPT
    assert told["manifest"]["model"]["source"] is None
    assert told["explanation"]["sentences"]
    plain = client.images.generate(prompt=PROMPT, extra_body={"twig": {"seed": 1}}).data[0].twig
    assert not {"draft", "mask", "explanation", "manifest"} & plain.keys()


def test_a_refused_picture_is_an_error_with_its_evidence(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=PROMPT, extra_body={"twig": REFUSE})
    error = caught.value
    assert error.code == "moderation_blocked"
    assert error.type == "image_generation_user_error"
    assert error.body["moderation_details"]["moderation_stage"] == "output"
    assert error.body["twig"]["verdict"] == "refused"
    assert error.body["twig"]["scores"]["ssim"]["crossed"]
    assert "ssim" in error.message
    assert error.response.headers["x-should-retry"] == "false"


def test_of_several_pictures_refused_ones_are_null_with_their_verdict(client):
    answer = client.images.generate(prompt=PROMPT, n=2, extra_body={"twig": REFUSE})
    assert [item.b64_json for item in answer.data] == [None, None]
    assert {item.twig["verdict"] for item in answer.data} == {"refused"}


def test_what_a_person_is_to_decide_is_withheld(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt=PROMPT, extra_body={"twig": {"rule": "review if ssim > -1"}})
    assert caught.value.body["twig"]["verdict"] == "review"


BAD = [
    ({"prompt": "x", "colour": "red"}, 400, "unknown_parameter", "colour"),
    ({}, 400, "missing_required_parameter", "prompt"),
    ({"prompt": "x", "n": 11}, 400, "invalid_value", "n"),
    ({"prompt": "x", "n": 5}, 400, "limit_exceeded", "n"),
    ({"prompt": "x", "n": True}, 400, "invalid_value", "n"),
    ({"prompt": "x", "size": "big"}, 400, "invalid_value", "size"),
    ({"prompt": "x", "size": "4096x4096"}, 400, "limit_exceeded", "size"),
    ({"prompt": "x", "size": "63x64"}, 400, "invalid_value", None),
    ({"prompt": "x", "quality": "hd"}, 400, "unsupported_parameter", "quality"),
    ({"prompt": "x", "background": "transparent"}, 400, "unsupported_parameter", "background"),
    ({"prompt": "x", "moderation": "low"}, 400, "unsupported_parameter", "moderation"),
    ({"prompt": "x", "response_format": "url"}, 400, "unsupported_parameter", "response_format"),
    ({"prompt": "x", "output_format": "gif"}, 400, "unsupported_parameter", "output_format"),
    ({"prompt": "x", "style": "vivid"}, 400, "unsupported_parameter", "style"),
    ({"prompt": "x", "partial_images": 1}, 400, "invalid_value", None),
    ({"prompt": "x", "output_compression": 5}, 400, "invalid_value", None),
    ({"prompt": "x", "model": "dall-e-9"}, 404, "model_not_found", "model"),
    ({"prompt": "x", "twig": {"sead": 1}}, 400, "unknown_parameter", "twig.sead"),
    ({"prompt": "x", "twig": {"source": "/etc/passwd"}}, 400, "unknown_parameter", "twig.source"),
    ({"prompt": "x", "twig": {"seed": -1}}, 400, "invalid_value", "twig.seed"),
    ({"prompt": "x", "twig": {"steps": 51}}, 400, "limit_exceeded", "twig.steps"),
    ({"prompt": "x", "twig": {"preset": "off"}}, 400, "preset_too_light", "twig.preset"),
    ({"prompt": "x", "twig": {"retries": 3}}, 400, "too_many_retries", "twig.retries"),
    ({"prompt": "x", "twig": {"rule": "accept everything"}}, 400, "invalid_rule", "twig.rule"),
    ({"prompt": "x", "twig": {"rule": "refuse if beauty > 1"}}, 400, "invalid_value", None),
    ({"prompt": "x", "twig": {"rule": "refuse if ssim > 0.5; retry 3"}}, 400, "invalid_rule", "twig.rule"),
    ({"prompt": "x", "twig": {"priority": 101}}, 400, "invalid_value", "twig.priority"),
    ({"prompt": "x", "twig": {"deadline": 601}}, 400, "limit_exceeded", "twig.deadline"),
    ({"prompt": "word " * 200}, 400, "invalid_value", None),
    ({"prompt": "a\x00b"}, 400, "invalid_value", "prompt"),
]


@pytest.mark.parametrize(("body", "status", "code", "param"), BAD)
def test_what_cannot_be_served_is_refused_by_name(served, body, status, code, param):
    answer = httpx2.post(f"{served.url}/v1/images/generations", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["message"]
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("data", "headers", "status", "code"),
    [
        (b"{", {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_json"),
        (b"\xff", {}, 400, "invalid_json"),
        (b'{"prompt": "a", "prompt": "b"}', {}, 400, "invalid_json"),
        (b"[" * 5000, {}, 400, "invalid_json"),
        (b'{"prompt": "a"}', {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b" " * (2**20 + 1), {}, 413, "body_too_large"),
        (b'{"prompt": "a"}', {"origin": "https://elsewhere.example"}, 403, "not_local"),
        (b'{"prompt": "a"}', {"host": "elsewhere.example"}, 403, "not_local"),
        (b'{"prompt": "a"}', {"origin": "http://[elsewhere"}, 403, "not_local"),
        (b'{"prompt": "a"}', {"host": "[elsewhere"}, 403, "not_local"),
        (b'{"prompt": "a"}', {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
    ],
)
def test_a_body_that_is_none_is_refused(served, data, headers, status, code):
    sent = {"content-type": "application/json", **headers}
    answer = httpx2.post(f"{served.url}/v1/images/generations", content=data, headers=sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_body_without_a_length_is_cut_off_where_it_is_too_large(served):
    def chunks():
        yield from (b" " * 2**16 for _ in range(40))

    headers = {"content-type": "application/json"}
    answer = httpx2.post(f"{served.url}/v1/images/generations", content=chunks(), headers=headers)
    assert answer.status_code == 413


def test_who_leaves_before_the_body_has_come_makes_no_error(served, caplog):
    def count():
        found = re.findall(r'^twig_http_requests_total\{.*status="499"\} (\S+)$', page(), re.MULTILINE)
        return sum(map(float, found))

    def page():
        return httpx2.get(f"{served.url}/metrics").text

    before, head = count(), b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n"
    with socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2]))) as leaving:
        leaving.sendall(head + b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{")
    wait_for(lambda: count() == before + 1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["twig", "gpt-image-1"]
    assert client.models.retrieve("twig").owned_by == "twig"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


def test_no_such_route_has_the_same_shape(served):
    answer = httpx2.get(f"{served.url}/v1/images/variations")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = httpx2.get(f"{served.url}/v1/images/generations")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    for path in ("/", "/livez", "/readyz"):
        answer = httpx2.head(served.url + path)
        assert (answer.status_code, answer.content) == (200, b""), "as balancers ask"


def test_a_passed_deadline_is_504_and_not_retried(client):
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.generate(prompt=PROMPT, extra_body={"twig": {"steps": 50, "deadline": 0.05}})
    assert caught.value.status_code == 504
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert json.loads(caught.value.response.text)["error"]["code"] == "deadline_exceeded"

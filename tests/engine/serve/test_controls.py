"""Control images of clients, where the operator allows them."""

import base64
import io

import openai
import pytest
from PIL import Image

from servers import running
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.serve.config import ServeConfig
from twig.engine.serve.server import load


def text(size=(64, 64)):
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    further = f"canny={tiny_checkpoint / 'controlnet'}"
    return Engine.from_pretrained(tiny_checkpoint, controlnet=[further], limits=Limits(slots=2, rows=4))


def asked(client, **control):
    wanted = {"seed": 5, "manifest": True, "controls": [{"name": "canny", "image": text()} | control]}
    (item,) = client.images.generate(prompt="a red star", extra_body={"twig": wanted}).data
    return item


def test_a_client_sends_control_images_where_the_operator_allows_them(engine, plain_config, tmp_path):
    config = plain_config.with_("bounds", controls=True, upload_pixels=64 * 64).with_("records", folder=tmp_path)
    with running(engine, config) as server:
        client = server.client()
        followed, less = asked(client), asked(client, scale=0)
        assert followed.b64_json != less.b64_json
        assert followed.twig["manifest"]["controls"]["canny"]["path"] is None
        assert followed.twig["manifest"]["model"]["controlnets"] == {}, "where it lies is nobody's business"
        for wrong, message in (
            ({"image": "/etc/passwd"}, "twig.controls"),
            ({"image": text((65, 64))}, "twig.controls"),
            ({"name": "depth"}, "no further ControlNet 'depth'"),
            ({"scale": 9}, "twig.controls"),
        ):
            with pytest.raises(openai.BadRequestError, match=message):
                asked(client, **wrong)


def test_where_he_does_not_they_are_refused_by_name(client):
    with pytest.raises(openai.PermissionDeniedError, match=r"twig\.controls: this server takes no control images"):
        asked(client)


def test_an_operators_file_names_further_controlnets(tiny_checkpoint, tmp_path):
    (tmp_path / "canny").symlink_to(tiny_checkpoint / "controlnet")
    path = tmp_path / "serve.yaml"
    path.write_text(f"model: {{path: {tiny_checkpoint}, controlnets: {{canny: canny}}}}\n")
    assert list(load(ServeConfig.load(path)).components.controlnets) == ["canny"]

"""What the operator switches: reviews, drafts, pictures beside their records; and an engine that died."""

import io

import httpx2
import openai
import pytest
from PIL import Image

from servers import running, wait_for
from twig.engine.engine import Engine
from twig.engine.records.manifest import Manifest, pixel_hash

PROMPT = "a red star"


def test_reviews_are_delivered_drafts_kept_back_and_pictures_kept(served_engine, plain_config, tmp_path):
    config = plain_config.with_("drawing", review="deliver").with_("bounds", drafts=False)
    config = config.with_("records", folder=tmp_path, pictures=True)
    with running(served_engine, config) as served:
        client = served.client()
        (item,) = client.images.generate(prompt=PROMPT, extra_body={"twig": {"rule": "review if ssim > -1"}}).data
        assert item.b64_json
        assert item.twig["verdict"] == "review"
        assert "a person is to" in item.twig["why"]
        manifest = Manifest.load(tmp_path / f"{item.twig['record']}.json")
        kept = Image.open(io.BytesIO((tmp_path / manifest.image).read_bytes()))
        assert pixel_hash(kept) == manifest.hashes.image
        for wanted in ({"draft": True}, {"explain": True}, {"mask": True}):
            with pytest.raises(openai.PermissionDeniedError, match="neither drafts nor previews"):
                client.images.generate(prompt=PROMPT, extra_body={"twig": wanted})
        with pytest.raises(openai.PermissionDeniedError):
            client.images.generate(prompt=PROMPT, stream=True, partial_images=1)
        assert [event.type for event in client.images.generate(prompt=PROMPT, stream=True)] == [
            "image_generation.completed"
        ]


def test_a_record_that_cannot_be_kept_is_a_picture_that_is_not_shown(served_engine, plain_config, tmp_path):
    with running(served_engine, plain_config.with_("records", folder=tmp_path)) as served:
        client = served.client()
        client.images.generate(prompt=PROMPT)
        (tmp_path / "audit.jsonl").write_text("altered\n")
        with pytest.raises(openai.InternalServerError) as caught:
            client.images.generate(prompt=PROMPT)
        assert caught.value.code == "records_unavailable"
        assert "audit" not in caught.value.message
        with pytest.raises(openai.APIError) as caught:
            list(client.images.generate(prompt=PROMPT, stream=True))
        assert caught.value.code == "records_unavailable"


def test_an_engine_that_died_is_not_alive_and_says_so(served_engine, plain_config, tmp_path, monkeypatch):
    engine = Engine(served_engine.components)

    def die():
        raise MemoryError("no more")

    with running(engine, plain_config.with_("records", folder=tmp_path)) as served:
        monkeypatch.setattr(engine, "advance", die)
        with pytest.raises(openai.InternalServerError) as caught:
            served.client().images.generate(prompt=PROMPT)
        assert caught.value.status_code == 503
        wait_for(lambda: httpx2.get(f"{served.url}/livez").status_code == 503)
        assert httpx2.get(f"{served.url}/readyz").status_code == 503
        monkeypatch.undo()
        engine.drain()

"""Several models of one server, each with its own drawing: named, told of, counted, and drawn by."""

import re

import httpx2
import openai
import pytest

from findings import findings
from servers import running, wait_for
from twig.engine.api.errors import InvalidRequestError
from twig.engine.records.manifest import Manifest
from twig.engine.serve.app import application
from twig.engine.serve.config import ServeConfig
from twig.engine.serve.keys import LOCAL, Keys
from twig.engine.serve.served import load_of
from twig.engine.serve.server import check_drawing

PROMPT = "a red star"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two models under names and aliases of their own, and keys whose holders have little."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "findings.json").write_text(findings().model_dump_json())
    turbo = {"name": "turbo", "aliases": ["fast"], "study": folder}
    keys = Keys(folder / "keys.json")
    config = ServeConfig(
        model={"name": "star", "aliases": ["gpt-image-1"]},
        drawing={"steps": 1, "rule": "refuse if ssim > 1", "preset": "off"},
        models=[turbo | {"drawing": {"steps": 2, "guidance": 1, "preset": "off"}}],
        records={"folder": folder},
        listen={"keys": keys.path},
        drain={"grace": 0, "deadline": 5},
    )
    return config, {"ann": keys.add("ann", roles=tuple(LOCAL.roles)), "poor": keys.add("poor", rows_per_minute=6)}


@pytest.fixture(scope="module")
def both(served_engine, turbo_engine, config):
    with running(served_engine, config[0], turbo_engine) as server:
        yield server


@pytest.fixture(scope="module")
def ann(both, config):
    return both.client(config[1]["ann"])


def told(both, config, path):
    answer = httpx2.get(both.url + path, headers={"authorization": f"Bearer {config[1]['ann']}"})
    return answer.json() if "json" in answer.headers["content-type"] else answer.text


def test_a_body_names_the_model_that_draws(ann, both):
    answers = {
        name: ann.images.generate(prompt=PROMPT, model=name, extra_body={"twig": {"seed": 3}}).data[0]
        for name in ("star", "turbo", "fast")
    }
    plain = ann.images.generate(prompt=PROMPT, extra_body={"twig": {"seed": 3}}).data[0]
    assert plain.b64_json == answers["star"].b64_json != answers["turbo"].b64_json
    assert answers["turbo"].b64_json == answers["fast"].b64_json
    assert answers["turbo"].twig["rows"] == 4, "two steps of draft and final, unguided"
    with pytest.raises(openai.NotFoundError, match="'slow' does not exist here; there is 'star', 'turbo'"):
        ann.images.generate(prompt=PROMPT, model="slow")
    folder = both.service.config.records.folder
    manifests = [Manifest.load(folder / f"{answers[name].twig['record']}.json") for name in ("star", "turbo")]
    assert manifests[0].model.source != manifests[1].model.source
    assert both.service.keeper.log.verify().findings == (), "one chain of both"


def test_models_and_their_settings_are_told(ann, both, config):
    assert [model.id for model in ann.models.list().data] == ["star", "gpt-image-1", "turbo", "fast"]
    assert ann.models.retrieve("fast").id == "fast"
    with pytest.raises(openai.NotFoundError):
        ann.models.retrieve("slow")
    first, other = (told(both, config, f"/v1/twig/settings{query}") for query in ("", "?model=fast"))
    assert (first["model"], first["steps"], first["guidance"]) == ("star", 1, 5.0)
    assert (other["model"], other["steps"], other["guidance"]) == ("turbo", 2, 1.0)
    assert first["models"] == other["models"] == ["star", "turbo"]
    assert first["study"] is None
    assert len(other["study"]["presets"]) == 3, "each has a study of its own"
    assert other["rule"] == "refuse if ssim > 1.0", "what its drawing leaves out is the file's"
    assert told(both, config, "/v1/twig/settings?model=slow")["error"]["code"] == "model_not_found"


def test_metrics_are_counted_by_model(ann, both, config):
    ann.images.generate(prompt=PROMPT, model="turbo")
    page = told(both, config, "/metrics")
    rows = dict(re.findall(r'^twig_unet_rows_total{model="(\w+)"} (\S+)$', page, re.MULTILINE))
    assert rows.keys() == {"star", "turbo"}
    assert float(rows["turbo"]) >= 4
    assert 'twig_queued_rows{model="star"} 0.0' in page
    assert page.count("# TYPE twig_images_total counter") == 1


def test_a_keys_rows_are_counted_over_all_models(both, config):
    poor = both.client(config[1]["poor"])
    poor.images.generate(prompt=PROMPT)  # two stages of one step, guided: four rows of six
    with pytest.raises(openai.RateLimitError, match="costs 4 rows and the key's allowance is 2"):
        poor.images.generate(prompt=PROMPT, model="turbo")


def test_a_job_is_drawn_by_the_model_it_names(both, config, ann):
    options = {"background": True, "seed": 3}
    raw = ann.images.with_raw_response.generate(prompt=PROMPT, model="fast", extra_body={"twig": options})
    path = raw.headers["location"]
    wait_for(lambda: told(both, config, path)["status"] == "done")
    (item,) = told(both, config, path)["response"]["body"]["data"]
    plain = ann.images.generate(prompt=PROMPT, model="turbo", extra_body={"twig": {"seed": 3}}).data[0]
    assert item["b64_json"] == plain.b64_json


def test_the_model_whose_drawing_cannot_be_is_named(served_engine, turbo_engine, config):
    (further,) = config[0].models
    wrong = further.model_copy(update={"drawing": further.drawing.model_copy(update={"rule": "refuse if beauty > 1"})})
    served = application([served_engine, turbo_engine], config[0].model_copy(update={"models": (wrong,)})).state.service
    with pytest.raises(InvalidRequestError, match=r"model 'turbo': .*unknown metric 'beauty'"):
        check_drawing(served)


class Queue:
    """An engine of which only its load is asked."""

    def __init__(self, queued_rows, rows_per_second):
        self.queued_rows, self.rows_per_second = queued_rows, rows_per_second


def test_the_load_of_several_is_the_time_that_each_takes_after_the_other():
    assert load_of([Queue(100, 50.0), Queue(30, 10.0)]) == (130, 130 / 5)
    assert load_of([Queue(100, 50.0), Queue(0, 10.0)]) == (100, 50.0)
    assert load_of([Queue(0, 50.0), Queue(0, 0.0)]) == (0, 50.0)
    assert load_of([Queue(7, 0.0), Queue(3, 0.0)]) == (10, 0.0)

"""How requests find their device, and what is told of all devices together."""

import json
from typing import NamedTuple

import pytest

from twig.engine.api.errors import TwigError
from twig.engine.serve.config import ServeConfig
from twig.engine.serve.devices.choosing import asked, chosen
from twig.engine.serve.devices.fleet import environment_of
from twig.engine.serve.devices.front import Front
from twig.engine.serve.devices.merging import merged
from twig.engine.serve.devices.server import device_names


class Device(NamedTuple):
    name: str
    rows: int = 0


THREE = [Device("0"), Device("1"), Device("2")]
PROMPTS = [f"a red star, number {number}" for number in range(300)]


def test_equal_prompts_meet_and_prompts_are_spread():
    found = [chosen(THREE, prompt, 0).name for prompt in PROMPTS]
    assert found == [chosen(THREE[::-1], prompt, 0).name for prompt in PROMPTS]
    assert all(70 < found.count(device.name) < 130 for device in THREE)


def test_a_device_that_goes_moves_its_own_prompts_alone():
    before = {prompt: chosen(THREE, prompt, 0).name for prompt in PROMPTS}
    after = {prompt: chosen(THREE[:2], prompt, 0).name for prompt in PROMPTS}
    assert {prompt for prompt in PROMPTS if before[prompt] != after[prompt]} == {
        prompt for prompt in PROMPTS if before[prompt] == "2"
    }


def test_a_device_too_far_behind_is_passed_over():
    prompt = next(prompt for prompt in PROMPTS if chosen(THREE, prompt, 0).name == "2")
    busy = [Device("0", 50), Device("1", 10), Device("2", 110)]
    assert chosen(busy, prompt, 100).name == "2"
    assert chosen(busy, prompt, 99).name == "1"
    assert chosen(busy, None, 1000).name == "1"


def test_a_body_says_its_prompt_its_model_and_about_what_it_costs():
    turbo = {"name": "turbo", "aliases": ["fast"], "drawing": {"steps": 4, "guidance": 1}}
    front = Front(ServeConfig(drawing={"steps": 20}, models=[turbo]), None)

    def told(**body):
        wanted = asked(json.dumps(body).encode(), front.views)
        return wanted.prompt, wanted.rows, wanted.view.model.name

    assert told(prompt="x") == ("x", 80, "twig")
    assert told(prompt="x", n=3, twig={"steps": 5}) == ("x", 40, "twig")
    assert told(prompt="x", twig={"guidance": 1}) == ("x", 40, "twig")
    assert told(prompt="x", model="fast") == ("x", 8, "turbo"), "four steps without guidance, twice"
    assert told(prompt="x", model="turbo", twig={"guidance": 3}) == ("x", 16, "turbo")
    assert told(prompt="x", model="none such") == ("x", 80, "twig")
    assert told(prompt=3)[0] is None
    for body in (b"--form", b"[" * 10**5):
        assert asked(body, front.views)[:2] == (None, 80), "taken for a usual one"
    strange = (b'{"prompt": "x", "n": "many"}', b'{"prompt": "x", "model": ["x"]}', b'{"prompt": "x", "n": 1e999}')
    for body in (b"", b"[]", *strange, b'{"prompt": "x", "twig": {"guidance": "high"}}'):
        assert asked(body, front.views)[:2] == (None, 0)


def test_pages_of_metrics_become_one_with_the_devices_named():
    page = (
        "# HELP twig_http_requests_total Requests answered.\n# TYPE twig_http_requests_total counter\n"
        'twig_http_requests_total{status="200"} 3.0\n'
    )
    text = merged({"0:cpu": page, "1:cpu": page}).decode()
    assert text.count("# TYPE twig_http_requests_total counter") == 1
    for device in ("0:cpu", "1:cpu"):
        assert f'twig_http_requests_total{{device="{device}",status="200"}} 3.0' in text


def test_devices_are_named_by_number_or_name():
    assert device_names("0, 1,cpu") == ["cuda:0", "cuda:1", "cpu"]
    with pytest.raises(TwigError, match="--devices takes names"):
        device_names("0,,1")


def test_several_devices_on_the_processor_share_its_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(7)), raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    threads = [environment_of("cpu", devices).get("OMP_NUM_THREADS") for devices in (["cpu"], ["cpu"] * 3, ["cpu"] * 9)]
    assert threads == [None, "2", "1"]
    assert "OMP_NUM_THREADS" not in environment_of("0", ["0", "cpu", "cpu"])
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment_of("cpu", ["cpu"] * 3)["OMP_NUM_THREADS"] == "5"

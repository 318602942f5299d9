"""How requests find their device, and what is told of all devices together."""

import json
from typing import NamedTuple

import pytest

from twig.engine.api.errors import TwigError
from twig.engine.serve.devices.choosing import asked, chosen
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


def test_a_body_says_its_prompt_and_about_what_it_costs():
    assert asked(json.dumps({"prompt": "x", "n": 3, "twig": {"steps": 5}}).encode(), 20) == ("x", 40)
    assert asked(b'{"prompt": "x"}', 20) == ("x", 80)
    for body in (b"", b"{", b"[]", b'{"prompt": "x", "n": "many"}', b"[" * 10**5):
        assert asked(body, 20) == (None, 0)
    assert asked(b'{"prompt": 3}', 20)[0] is None


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

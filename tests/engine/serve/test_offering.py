"""What a client is told that it may ask for."""

import httpx2
import pytest

from findings import findings
from servers import running
from twig.engine.api.errors import ForeignFileError
from twig.engine.serve.app import application

SETTINGS = "/v1/twig/settings"


def test_settings_are_those_that_requests_are_held_against(served):
    told = httpx2.get(served.url + SETTINGS).json()
    assert told["presets"] == ["gentle", "fast", "default", "strict"]
    assert told["preset"] == "gentle"
    assert told["rule"] == "refuse if ssim > 1.0"
    assert told["size"] == {"width": 64, "height": 64}
    assert told["bounds"]["steps"] == served.service.config.bounds.steps
    assert told["roles"] == ["generate", "audit", "metrics"]
    assert told["study"] is None


def test_a_study_is_told_in_numbers_alone(served_engine, plain_config, tmp_path):
    (tmp_path / "findings.json").write_text(findings(close=None).model_dump_json())
    with running(served_engine, plain_config.with_("page", study=tmp_path)) as server:
        study = httpx2.get(server.url + SETTINGS).json()["study"]
    assert study["date"] == "2026-03-01"
    assert [point["name"] for point in study["presets"]] == ["gentle", "default", "strict"]
    assert study["presets"][0]["close"] is None
    assert study["presets"][1]["close"] == 0.05
    assert {"limits", "price"}.isdisjoint(study.keys() | study["presets"][0].keys())


def test_what_is_no_study_is_found_before_anything_is_served(served_engine, plain_config, tmp_path):
    (tmp_path / "findings.json").write_text("{}")
    with pytest.raises(ForeignFileError, match="findings"):
        application([served_engine], plain_config.with_("page", study=tmp_path))

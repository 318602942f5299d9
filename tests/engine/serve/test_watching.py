"""What is seen of a server from outside: health, metrics, spans, logs and records, none of which holds a prompt."""

import json
import logging
import re
import sys
from pathlib import Path

import httpx2
import openai
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import twig
from servers import wait_for
from twig.engine.records.audit import AuditLog
from twig.engine.records.manifest import Manifest
from twig.engine.records.output import LOG_NAME
from twig.engine.serve.logs import JsonFormatter

PROMPT = "an unspeakable star"


@pytest.fixture(scope="module")
def spans():
    """Spans as an exporter gets them; the process has one provider."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def draw(client, **twig):
    return client.images.generate(prompt=PROMPT, extra_body={"twig": twig}).data[0].twig


def page(served):
    return httpx2.get(f"{served.url}/metrics").text


def test_it_is_alive_and_ready_until_it_drains(served):
    assert httpx2.get(f"{served.url}/livez").json() == {"status": "alive"}
    assert httpx2.get(f"{served.url}/readyz").json() == {"status": "ready"}
    served.service.draining = True
    try:
        answer = httpx2.get(f"{served.url}/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "shutting down")
        assert httpx2.get(f"{served.url}/livez").status_code == 200
    finally:
        served.service.draining = False


def test_metrics_count_requests_errors_and_the_engine(served, client):
    def count(name):
        found = re.search(rf"^{re.escape(name)} (\S+)$", page(served), re.MULTILINE)
        return float(found[1]) if found else 0.0

    drawn = 'twig_http_requests_total{method="POST",route="/v1/images/generations",status="200"}'
    wrong = 'twig_http_errors_total{code="unknown_parameter"}'
    before = count(drawn), count(wrong), count('twig_images_total{verdict="accepted"}')
    draw(client)
    with pytest.raises(openai.BadRequestError):
        draw(client, sead=1)
    after = count(drawn), count(wrong), count('twig_images_total{verdict="accepted"}')
    assert after == tuple(value + 1 for value in before)
    assert count("twig_rows_per_second") > 0
    assert 'route="none"' in page(served) or httpx2.get(f"{served.url}/{PROMPT}").status_code == 404
    assert "unspeakable" not in page(served)


def test_the_dashboard_asks_for_metrics_that_there_are(served, client):
    draw(client)
    names = set(re.findall(r"^# TYPE (\w+)", page(served), re.MULTILINE))
    board = json.loads((Path(twig.__file__).parent / "engine/serve/dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(asked) >= 8
    for expression in asked:
        used = set(re.findall(r"\btwig_\w+", expression))
        assert used, expression
        assert {re.sub("_(bucket|count|sum)$", "", name) for name in used} <= names, expression


def test_spans_tell_the_way_of_a_request(client, spans):
    spans.clear()
    above = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    told = client.images.generate(
        prompt=PROMPT, extra_headers={"traceparent": above}, extra_body={"twig": {"always": True}}
    ).data[0].twig  # fmt: skip
    wait_for(lambda: "request" in {span.name for span in spans.get_finished_spans()})
    done = {span.name: span for span in spans.get_finished_spans()}
    assert {"admission", "queue", "draft", "segment", "final", "judge"} <= done.keys()
    assert {f"{span.context.trace_id:032x}" for span in done.values()} == {above.split("-")[1]}
    assert done["request"].attributes["http.route"] == "/v1/images/generations"
    assert done["admission"].attributes["twig.rows.estimated"] == told["rows"]
    assert done["judge"].attributes["twig.verdict"] == "accepted"
    assert "unspeakable" not in "".join(span.to_json() for span in done.values())


def test_logs_are_json_without_prompts(served, client, caplog):
    with caplog.at_level(logging.INFO, "twig.access"):
        answer = client.images.with_raw_response.generate(prompt=PROMPT)
        with pytest.raises(openai.BadRequestError):
            draw(client, colour=PROMPT)
        wait_for(lambda: len([record for record in caplog.records if record.name == "twig.access"]) == 2)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "twig.access"]
    ours = next(line for line in lines if line["request_id"] == answer.headers["x-request-id"])
    assert (ours["route"], ours["status"], ours["tenant"]) == ("/v1/images/generations", 200, "local")
    assert lines[-1]["code"] == "unknown_parameter"
    assert "unspeakable" not in json.dumps(lines)


def test_an_error_in_the_log_says_where_and_not_what():
    try:
        raise ValueError(PROMPT)
    except ValueError:
        record = logging.getLogger().makeRecord("x", logging.ERROR, "", 0, "it broke", (), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["error"], line["message"]) == ("ValueError", "it broke")
    assert "test_watching.py" in line["at"][0]
    assert "unspeakable" not in json.dumps(line)


def test_every_answer_has_its_record(served, client, plain_config):
    told = draw(client, seed=77)
    answer = httpx2.get(f"{served.url}/v1/twig/records/{told['record']}").json()
    assert answer.get("error") is None
    assert answer["manifest"]["request"]["prompt"] == PROMPT
    assert answer["manifest"]["request"]["seed"] == 77
    assert answer["manifest_sha256"] == told["manifest_sha256"]
    assert [line["verdict"] for line in answer["lines"]] == ["accepted"]
    assert "prompt" not in answer["lines"][0]
    folder = plain_config.records.folder
    assert AuditLog(folder / LOG_NAME).verify().findings == ()
    assert Manifest.load(folder / f"{told['record']}.json").verdict == "accepted"
    assert not list(folder.glob("*.png"))


@pytest.mark.parametrize("id", ["twig-" + "0" * 32 + "-0", "audit", "..%2Faudit", "twig-0-0"])
def test_a_record_that_there_is_not_is_not_found(served, id):
    assert httpx2.get(f"{served.url}/v1/twig/records/{id}").status_code == 404

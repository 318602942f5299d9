"""What an auditor finds: lines by what they say, the latest first, page by page; records byte for byte."""

import hashlib

import httpx2
import pytest

from servers import running
from twig.engine.api.choices import Role
from twig.engine.records.output import LOG_NAME
from twig.engine.serve.keys import Keys

SEARCH = "/v1/twig/audit/search"
PROMPTS = ("an audited star", "an audited house", "an audited star")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audited")


@pytest.fixture(scope="module")
def audited(served_engine, plain_config, folder):
    """A server with a log of its own that holds three pictures, and what it said of them."""
    with running(served_engine, plain_config.with_("records", folder=folder)) as server:
        client = server.client()
        told = [
            client.images.generate(prompt=prompt, extra_body={"twig": {"seed": seed}}).data[0].twig
            for seed, prompt in enumerate(PROMPTS)
        ]
        yield server, told


def search(server, **wanted):
    return httpx2.post(server.url + SEARCH, json=wanted).json()


def test_lines_are_found_by_what_they_say(audited):
    server, told = audited
    assert [line["number"] for line in search(server)["data"]] == [3, 2, 1]
    found = search(server, prompt="an audited star")["data"]
    assert [line["manifest_sha256"] for line in found] == [told[2]["manifest_sha256"], told[0]["manifest_sha256"]]
    assert "prompt" not in found[0]
    assert search(server, verdict="refused")["data"] == []
    assert search(server, until="2020-01-01T00:00:00Z")["data"] == []
    assert len(search(server, since="2020-01-01T00:00:00+09:00")["data"]) == 3


def test_one_reads_on_where_one_stopped(audited):
    first = search(audited[0], limit=2)
    assert ([line["number"] for line in first["data"]], first["has_more"]) == ([3, 2], True)
    rest = search(audited[0], limit=2, before=first["next_before"])
    assert ([line["number"] for line in rest["data"]], rest["has_more"], rest["next_before"]) == ([1], False, None)


@pytest.mark.parametrize(
    ("wanted", "field"), [({"limit": 0}, "limit"), ({"since": "2020-01-01T00:00"}, "since"), ({"path": "/"}, "path")]
)
def test_what_cannot_be_searched_for_is_named(audited, wanted, field):
    error = search(audited[0], **wanted)["error"]
    assert error["param"] == field


def test_a_manifest_comes_as_the_log_names_it(audited):
    server, told = audited
    answer = httpx2.get(f"{server.url}/v1/twig/records/{told[0]['record']}/manifest")
    assert hashlib.sha256(answer.content).hexdigest() == told[0]["manifest_sha256"]
    assert httpx2.get(f"{server.url}/v1/twig/records/{'twig-' + '0' * 32 + '-0'}/manifest").status_code == 404


def test_a_chain_is_whole_until_somebody_changes_it(audited, folder):
    server, _ = audited
    verify = f"{server.url}/v1/twig/audit/verification"
    told = httpx2.get(verify).json()
    assert (told["whole"], told["lines"], told["findings"]) == (True, 3, [])
    log = folder / LOG_NAME
    kept = log.read_bytes()
    log.write_bytes(kept.replace(b'"accepted"', b'"refused"', 1))
    told = httpx2.get(verify).json()
    log.write_bytes(kept)
    assert not told["whole"]
    assert "line 1" in told["findings"][0]


def test_the_log_opens_to_auditors_alone(served_engine, plain_config, tmp_path):
    keys = Keys(tmp_path / "keys.json")
    drawer, auditor = keys.add("ann"), keys.add("eve", roles=(Role.AUDIT,))
    config = plain_config.with_("listen", keys=keys.path).with_("records", folder=tmp_path / "none")
    with running(served_engine, config) as server:

        def asked(key):
            return httpx2.post(server.url + SEARCH, json={}, headers={"authorization": f"Bearer {key}"})

        assert [asked(key).status_code for key in ("none", drawer, auditor)] == [401, 403, 200]
        assert asked(auditor).json()["data"] == []
        verified = httpx2.get(
            f"{server.url}/v1/twig/audit/verification", headers={"authorization": f"Bearer {auditor}"}
        ).json()
        assert (verified["whole"], verified["head"]) == (True, None)

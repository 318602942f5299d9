"""The page's files as they are sent, and what they may not hold."""

import re
from importlib.resources import files

import httpx2
import pytest

from servers import running
from twig.engine.api.metrics import ALL_METRICS
from twig.engine.api.result import Verdict

PAGE = files("twig.engine.serve").joinpath("page")
NAMES = sorted(path.name for path in PAGE.iterdir())
CODE = [name for name in NAMES if name.endswith(".js")]


def words(name):
    """Names and words of a language's table."""
    return dict(
        re.findall(r'^  "([\w. ]+)":\s*"(.*)",$', PAGE.joinpath(name).read_text(encoding="utf-8"), re.MULTILINE)
    )


def test_the_page_lets_nothing_else_in(served):
    answer = httpx2.get(f"{served.url}/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_sent_as_it_lies_and_once(served, name):
    answer = httpx2.get(f"{served.url}/page/{name}")
    assert answer.content == PAGE.joinpath(name).read_bytes()
    again = httpx2.get(f"{served.url}/page/{name}", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e", "index.html%00"])
def test_nothing_else_is_sent(served, name):
    answer = httpx2.get(f"{served.url}/page/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_an_operator_may_do_without(served_engine, plain_config):
    with running(served_engine, plain_config.with_("page", shown=False)) as server:
        assert httpx2.get(f"{server.url}/").status_code == 404
        assert httpx2.get(f"{server.url}/page/main.js").status_code == 404


def test_every_file_is_named_by_another_and_nothing_comes_from_elsewhere():
    texts = {name: PAGE.joinpath(name).read_text(encoding="utf-8") for name in NAMES}
    everything = "".join(texts.values())
    for name in NAMES:
        assert name == "index.html" or re.search(rf'"(?:page|\.)/{re.escape(name)}"', everything), name
    assert set(re.findall(r"https?://[\w./]+", everything)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(|\son\w+=|<style|\sstyle=", everything)


def test_both_languages_say_everything():
    english, japanese = words("en.js"), words("ja.js")
    multiline = set(re.findall(r'^  "([\w.]+)":$', PAGE.joinpath("en.js").read_text(), re.MULTILINE))
    assert len(english) > 150
    assert english.keys() | multiline == japanese.keys() | multiline
    for name in english.keys() & japanese.keys():
        places = [sorted(re.findall(r"\{\w+\}", text)) for text in (english[name], japanese[name])]
        assert places[0] == places[1], name


def test_every_word_that_is_named_is_there():
    english = words("en.js").keys() | {"promise"}
    named = set(re.findall(r'data-t(?:-\w+)?="([\w.]+)"', PAGE.joinpath("index.html").read_text()))
    for name in CODE:
        named |= set(re.findall(r'\bt\("([\w.]+)"', PAGE.joinpath(name).read_text(encoding="utf-8")))
    assert named <= english


def test_every_measure_and_verdict_has_its_words():
    named = {name.removesuffix("_aligned") for name in ALL_METRICS}
    wanted = {f"measure.{name}" for name in named} | {f"verdict.{verdict}" for verdict in Verdict}
    assert wanted <= set(words("en.js"))

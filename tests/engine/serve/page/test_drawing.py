"""Pictures as somebody draws them on the page: to their end, refused, stopped, from a photo, in two tabs, in error."""

import base64
import io
import json

import pytest
from PIL import Image

from browsing import PIXELS
from findings import findings
from servers import running, wait_for
from twig.engine.records.manifest import Manifest
from twig.engine.records.model_record import ModelRecord
from twig.engine.serve.config import ServeConfig

pytestmark = pytest.mark.serving

REFUSE = "refuse if ssim > -1"

HEARD = """() => {
  window.told = [];
  const status = document.querySelector("#status");
  new MutationObserver(() => window.told.push(status.textContent)).observe(status, { childList: true });
}"""

DROP = """(type) => {
  const files = new DataTransfer();
  files.items.add(new File(["words"], "note.txt", { type }));
  const event = new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
  document.querySelector("#drop").dispatchEvent(event);
}"""


def picture_in(article, panel):
    """The picture that a panel shows, as the bytes that came."""
    data = article.locator(".panels").first.locator("figure").nth(panel).locator("img").evaluate(PIXELS)
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def saved(opened, article, words):
    with opened.page.expect_download() as download:
        article.get_by_role("link", name=words, exact=True).click()
    return download.value


def photo(folder):
    path = folder / "photo.png"
    Image.new("RGB", (80, 64), "#aa3333").save(path)
    return path


def test_a_picture_from_draft_to_final(opened, page_server):
    tab = opened()
    tab.draw("a red star & <b>a house</b>", seed=9007199254740995)
    article = tab.ended("accepted")
    assert article.locator("h3").inner_text().splitlines() == ["Picture of", "a red star & <b>a house</b>"]
    assert "seed 9007199254740995" in article.locator(".meta").inner_text()
    options = {"seed": 9007199254740995, "draft": True}
    plain = page_server.client().images.generate(prompt="a red star & <b>a house</b>", extra_body={"twig": options})
    for panel, text in ((0, plain.data[0].twig["draft"]), (2, plain.data[0].b64_json)):
        assert picture_in(article, panel).tobytes() == Image.open(io.BytesIO(base64.b64decode(text))).tobytes()
    assert article.locator(".checks .same").count() == 2
    assert article.locator(".measures tbody tr").count() >= 1
    assert tab.page.locator("#status").inner_text().startswith("Accepted.")
    assert tab.page.locator("#go").is_enabled()


def test_stages_are_told_while_they_run(opened):
    tab = opened()
    tab.page.evaluate(HEARD)
    tab.draw(steps=8)
    tab.ended("accepted")
    heard = tab.page.evaluate("window.told")
    assert heard[0] == "Waiting for a place."
    assert "The draft is there. The final is being drawn." in heard
    assert any(line.startswith("The final is at step") for line in heard)


def test_what_is_taken_away_is_what_the_record_says(opened, page_server, tmp_path):
    tab = opened()
    tab.draw("a star to keep")
    article = tab.ended("accepted")
    manifest = saved(tab, article, "Manifest")
    manifest.save_as(tmp_path / manifest.suggested_filename)
    kept = page_server.service.config.records.folder / manifest.suggested_filename
    ours, theirs = (json.loads(path.read_text()) for path in (tmp_path / manifest.suggested_filename, kept))
    assert ours | {"model": None} == theirs | {"model": None}
    assert Manifest.load(tmp_path / manifest.suggested_filename).request.prompt == "a star to keep"
    check = json.loads(saved(tab, article, "Check").path().read_text())
    assert check["record"] == kept.stem
    assert all(each["same"] for each in check["pictures"])
    for words in ("Picture", "Contact sheet"):
        assert Image.open(saved(tab, article, words).path()).format == "PNG"


def test_a_refusal_shows_its_evidence_and_no_picture(opened):
    tab = opened()
    tab.draw(rule=REFUSE)
    article = tab.ended("refused")
    assert "It is too close to its draft." in article.locator(".stamp").inner_text()
    assert article.locator(".measures tr.crossed code").all_inner_texts() == ["ssim"]
    final = article.locator(".panels").first.locator("figure").nth(2)
    assert (final.locator("img").count(), final.locator(".frame").inner_text()) == (0, "withheld")
    article.get_by_text("Where avoidance acted").click()
    assert article.locator(".maps .frame.grey img").count() == 1
    assert article.get_by_role("link", name="Picture", exact=True).count() == 0
    assert saved(tab, article, "Manifest").suggested_filename.startswith("twig-")


def test_the_model_is_chosen_where_there_are_several_and_signed_pictures_say_so(
    opened, served_engine, turbo_engine, plain_config, signing, tmp_path
):
    (tmp_path / "findings.json").write_text(findings().model_dump_json())
    drawing = {"steps": 2, "rule": "refuse if ssim > 0.99", "preset": "off"}
    models = [{"name": "turbo", "drawing": drawing, "study": tmp_path}]
    records = {"folder": tmp_path, "sign": signing}
    config = ServeConfig(**{**plain_config.model_dump(), "records": records, "models": models})
    with running(served_engine, config, turbo_engine) as server:
        tab = opened(server)
        assert tab.page.locator("#model-choice option").all_inner_texts() == ["twig", "turbo"]
        assert tab.page.locator("#study").is_hidden(), "there is none of the first"
        tab.page.select_option("#model-choice", "turbo")
        tab.page.locator("#rule-hint", has_text="ssim > 0.99").wait_for(state="attached")
        assert tab.page.locator("#model").inner_text() == "turbo"
        assert tab.page.locator("#study tbody tr").count() == 3
        assert tab.page.locator("#dial").get_attribute("max") == "4", "its lightest preset is off"
        tab.draw("a star")
        article = tab.ended("accepted")
        assert "The picture is signed" in article.locator(".record .signed").inner_text()
        manifest = json.loads(saved(tab, article, "Manifest").path().read_text())
    assert manifest["rule"] == "refuse if ssim > 0.99"
    assert manifest["model"]["hashes"] == ModelRecord.of(turbo_engine.components).hashes


def test_stopping_frees_the_server(opened, page_server):
    tab = opened()
    tab.draw(steps=50)
    tab.page.click("#stop")
    assert "Stopped" in tab.page.locator("article").first.inner_text()
    assert tab.page.locator("#status").inner_text() == "Stopped. Nothing is drawn any more."
    wait_for(lambda: page_server.service.load.rows == 0)
    tab.draw(steps=2)
    tab.ended("accepted")


def test_a_photo_takes_the_drafts_place(opened, tmp_path):
    tab = opened()
    tab.page.set_input_files("#photo", photo(tmp_path))
    mask = Image.new("L", (80, 64))
    mask.paste(255, (20, 16, 60, 48))
    mask.save(tmp_path / "mask.png")
    tab.page.set_input_files("#mask", tmp_path / "mask.png")
    tab.draw()
    article = tab.ended("accepted")
    assert article.locator("figcaption").all_inner_texts()[:3] == ["Your photo", "Mask", "Final"]
    assert [url for url in tab.requests if url.endswith("/v1/images/edits")]
    tab.page.get_by_role("button", name="Remove").click()
    assert not tab.page.locator("#brought").is_visible()


def test_a_photo_is_dropped_on_the_form(opened):
    tab = opened()
    tab.page.evaluate(DROP, "text/plain")
    assert "note.txt is no PNG, JPEG or WebP picture." in tab.page.locator("#notice").inner_text()
    tab.page.evaluate(DROP, "image/png")
    assert tab.page.locator("#photo-name").inner_text() == "note.txt, 1 KiB"
    tab.draw()
    assert "The server cannot read this picture." in tab.page.locator("article .failed").inner_text()


@pytest.mark.parametrize(("rule", "said"), [("refuse if beauty > 1", "cannot draw it"), ("accept", "Your rule")])
def test_an_error_is_told_in_words_and_the_servers_own(opened, rule, said):
    tab = opened()
    tab.draw("a prompt to keep", rule=rule)
    failed = tab.page.locator("article .failed")
    failed.wait_for()
    assert said in failed.inner_text()
    assert "The server says: " in failed.inner_text()
    assert tab.page.input_value("#prompt") == "a prompt to keep"


def test_a_server_that_is_gone_is_told_as_that(opened):
    tab = opened()
    tab.page.route("**/v1/images/generations", lambda route: route.abort())
    tab.draw()
    tab.page.locator("article .failed").wait_for()
    assert "The server does not answer." in tab.page.locator("article .failed").inner_text()


def test_a_full_queue_says_when_to_come_again(opened):
    tab = opened()
    body = json.dumps(
        {"error": {"code": "queue_full", "message": "what is queued takes 90 s", "type": "", "param": None}}
    )
    full = {"status": 429, "headers": {"retry-after": "30"}, "body": body}
    tab.page.route("**/v1/images/generations", lambda route: route.fulfill(**full))
    tab.draw()
    tab.page.locator("article .failed").wait_for()
    assert "Try again in 30 s." in tab.page.locator("article .failed").inner_text()


def test_two_tabs_draw_side_by_side(opened):
    first, second = opened(), opened()
    first.draw("a red star", seed=1, steps=6)
    second.draw("a blue house", seed=2)
    drawn = [(tab, tab.ended("accepted")) for tab in (second, first)]
    assert [article.locator("h3").inner_text().splitlines()[-1] for _, article in drawn] == [
        "a blue house",
        "a red star",
    ]
    assert all(tab.page.locator("article").count() == 1 for tab, _ in drawn)


def test_nothing_comes_from_elsewhere_and_no_prompt_is_in_an_address(opened, page_server):
    tab = opened()
    tab.draw("an unspeakable star")
    tab.ended("accepted")
    tab.page.click("#to-audit")
    tab.page.fill("#audit-prompt", "an unspeakable star")
    tab.page.click("#audit-form [type=submit]")
    tab.page.wait_for_selector("#audit-lines table")
    assert all(url.startswith((page_server.url, "blob:")) for url in tab.requests)
    assert not [url for url in [*tab.requests, tab.page.url] if "unspeakable" in url]

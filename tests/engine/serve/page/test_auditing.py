"""The auditor's view, and the keys that open each."""

import pytest

from servers import running
from twig.engine.api.choices import Role
from twig.engine.serve.keys import Keys

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    file = Keys(tmp_path_factory.mktemp("page-keys") / "keys.json")
    return file.path, {"ann": file.add("ann"), "eve": file.add("eve", roles=(Role.AUDIT,))}


@pytest.fixture(scope="module")
def keyed(served_engine, plain_config, keys, tmp_path_factory):
    """A server that asks for keys, and shows no drafts."""
    records = tmp_path_factory.mktemp("page-keyed")
    config = plain_config.with_("listen", keys=keys[0]).with_("records", folder=records)
    with running(served_engine, config.with_("bounds", drafts=False)) as server:
        yield server


def search(tab, **fields):
    tab.page.click("#to-audit")
    for name, value in fields.items():
        tab.page.fill(f"#audit-{name}", value)
    tab.page.click("#audit-form [type=submit]")


def test_a_line_is_found_by_its_prompt_and_its_record_is_checked(opened, page_server):
    tab = opened()
    tab.draw("a star for the auditor", seed=9007199254740993)
    tab.ended("accepted")
    search(tab, prompt="a star for the auditor")
    page = tab.page
    page.wait_for_selector("#audit-lines table")
    assert page.locator("#audit-status").inner_text() == "Lines found: 1, the latest first."
    page.locator("#audit-lines button").click()
    page.wait_for_selector("#record-title")
    record = page.locator("#audit-record")
    assert "a star for the auditor" in record.inner_text()
    assert "9007199254740993" in record.inner_text()
    assert record.locator(".checks .same").count() == 2
    assert page.evaluate("document.activeElement.id") == "audit-record"
    with page.expect_download() as download:
        record.get_by_role("link", name="Manifest").click()
    kept = page_server.service.config.records.folder / download.value.suggested_filename
    assert download.value.path().read_bytes() == kept.read_bytes()
    page.click("#audit-verify")
    page.locator("#audit-status .same").wait_for()
    assert "The chain is whole" in page.locator("#audit-status").inner_text()


def test_a_manifest_that_was_altered_is_seen(opened, page_server):
    tab = opened()
    tab.draw("a star to be altered")
    article = tab.ended("accepted")
    name = article.get_by_role("link", name="Manifest").get_attribute("download")
    path = page_server.service.config.records.folder / name
    path.write_text(path.read_text().replace("to be altered", "never asked for"))
    search(tab, prompt="a star to be altered")
    tab.page.locator("#audit-lines button").first.click()
    tab.page.locator("#audit-record .differs").wait_for()
    assert "NO line of the log names this manifest" in tab.page.locator("#audit-record").inner_text()
    tab.page.click("#audit-verify")
    tab.page.locator("#audit-status .differs").wait_for()
    assert "NOT whole. Findings: 1" in tab.page.locator("#audit-status").inner_text()


def test_nothing_found_is_said(opened):
    tab = opened()
    search(tab, prompt="nobody asked for this")
    tab.page.get_by_text("No line agrees with this.").wait_for()


def test_each_key_opens_its_own_view(opened, keyed, keys):
    tab = opened(keyed)
    page = tab.page
    assert not page.locator("#draw").is_visible()
    for key, opens in (("twig_000000000000_wrong", False), (keys[1]["ann"], True)):
        page.fill("#key", key)
        page.click("#key-form button")
        page.wait_for_selector("#draw:not([hidden])" if opens else "#notice:not([hidden])")
    assert not page.locator("#notice").is_visible()
    tab.draw()
    article = tab.ended("accepted")
    assert article.locator("figcaption").all_inner_texts() == ["Final"]
    search(tab)
    page.wait_for_selector("#audit-notice:not([hidden])")
    assert "This key may not do that." in page.locator("#audit-notice").inner_text()
    page.fill("#audit-key", keys[1]["eve"])
    page.click("#audit-form [type=submit]")
    page.wait_for_selector("#audit-lines table")
    assert keys[1]["ann"] not in " ".join([*tab.requests, page.content()])


def test_an_auditor_without_a_key_for_drawing_audits(opened, keyed, keys):
    tab = opened(keyed)
    search(tab, key=keys[1]["eve"])
    tab.page.wait_for_selector("#audit-status:not(:empty)")
    assert not tab.page.locator("#audit-notice").is_visible()

"""One server for all tests of the page, and a browser for those of a module."""

from collections.abc import Iterator

import pytest

from browsing import Watched, chromium
from findings import findings
from servers import Running, running


@pytest.fixture(scope="session")
def page_server(served_engine, plain_config, tmp_path_factory) -> Iterator[Running]:
    """A server with a study and a log of its own."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "findings.json").write_text(findings().model_dump_json())
    config = plain_config.with_("page", study=folder).with_("records", folder=folder / "records")
    with running(served_engine, config.with_("drawing", steps=2)) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser, page_server):
    """Returns a function that opens the page as a browser of these settings would, each time on its own."""
    contexts, pages = [], []

    def open_page(server=page_server, **settings):
        contexts.append(browser.new_context(**{"locale": "en-GB", "timezone_id": "UTC"} | settings))
        pages.append(Watched(contexts[-1].new_page(), server.url))
        return pages[-1]

    yield open_page
    for context in contexts:
        context.close()
    assert [wrong for page in pages for wrong in page.wrong] == []

"""A real browser, Debian's Chromium without a window, and what a reader would find wrong on a page in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

NAMELESS = """() => {
  const labels = (each) => [...(each.labels ?? [])].map((label) => label.textContent).join("");
  const named = (each) => (each.getAttribute("aria-label") ?? labels(each) + each.textContent).trim();
  const controls = "a, button, input, select, textarea, summary, [role=region], [role=group], svg[role=img]";
  const shown = [...document.querySelectorAll(controls)].filter((each) => each.checkVisibility());
  const pictures = [...document.images].filter((each) => !each.hasAttribute("alt"));
  const tables = [...document.querySelectorAll("table")].filter((each) => !each.querySelector("th[scope]"));
  return [...shown.filter((each) => !named(each)), ...pictures, ...tables].map((each) => each.outerHTML.slice(0, 120));
}"""
"""What is shown and has no name that could be read out."""

FAINT = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ground = (each) => {
    for (let on = each; on; on = on.parentElement) {
      const [r, g, b, a = 1] = parts(getComputedStyle(on).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const contrast = (each) => {
    const [a, b] = [light(parts(getComputedStyle(each).color)), light(ground(each))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const written = (each) => [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  return [...document.body.querySelectorAll("*")]
    .filter((each) => each.checkVisibility() && written(each) && !each.disabled && contrast(each) < 4.5)
    .map((each) => `${contrast(each).toFixed(2)} ${each.outerHTML.slice(0, 120)}`);
}"""
"""Text whose contrast to its ground is less than 4.5 to 1."""


SMALL = """() => [...document.querySelectorAll("button, summary, nav a, .save, label.button")]
  .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 24)
  .map((each) => each.textContent)"""
"""What is to be touched and is lower than 24 pixels."""

PIXELS = """async (image) => {
  const size = { width: image.naturalWidth, height: image.naturalHeight };
  const canvas = Object.assign(document.createElement("canvas"), size);
  canvas.getContext("2d").drawImage(image, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done));
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""
"""What a picture shows, as a PNG in base64."""


@contextmanager
def chromium() -> Iterator:
    """Chromium for a module's tests; skips them where it or what drives it is not installed."""
    driving = pytest.importorskip("playwright.sync_api", reason="no playwright to drive a browser with")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with driving.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Watched:
    """A page, what it asked for, and what went wrong in it."""

    def __init__(self, page, url) -> None:
        self.page, self.url = page, url
        self.requests, self.wrong = [], []
        page.set_default_timeout(60_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda said: self._heard(said))
        self.load()

    def load(self) -> None:
        """Load the page, and wait until it knows what the server offers or that it may not know."""
        self.page.goto(self.url)
        self.page.wait_for_selector("#draw:not([hidden]), #key-form:not([hidden]), #notice:not([hidden])")

    def _heard(self, said) -> None:
        if said.type == "error" and "status of" not in said.text and "net::" not in said.text:
            self.wrong.append(said.text)

    def draw(self, prompt="a red star", **fields) -> None:
        """Ask for a picture; `fields`: of the folded settings, by their ids."""
        page = self.page
        page.fill("#prompt", prompt)
        if fields and not page.locator("#seed").is_visible():
            page.click(".more summary")
        for name, value in fields.items():
            page.fill(f"#{name}", str(value))
        page.click("#go")

    def ended(self, verdict):
        """The latest picture, once it ended so and its check is done."""
        article = self.page.locator("article").first
        article.locator(f".stamp.{verdict}").wait_for()
        article.locator(".checks li").first.wait_for()
        return article

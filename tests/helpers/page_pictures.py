"""Draw the pictures of the page that the documents show: `python tests/helpers/page_pictures.py`."""

import tempfile
from pathlib import Path

from PIL import Image

from browsing import Watched, chromium
from findings import findings
from servers import running
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.serve.config import ServeConfig

OUT = Path(__file__).parents[2] / "engine" / "serve" / "pictures"
PROMPT = "a red star and a blue house on a green field"
COLOURS = 128


def main() -> None:
    """Draw with the model in the package, by a server of this process."""
    folder = Path(tempfile.mkdtemp())
    (folder / "findings.json").write_text(findings(close=0.21, model="embedded").model_dump_json())
    config = ServeConfig(
        model={"name": "embedded"},
        drawing={"preset": "gentle"},
        records={"folder": folder},
        page={"study": folder},
        drain={"grace": 0, "deadline": 5},
    )
    engine = Engine.from_pretrained(limits=Limits(slots=4, rows=4))
    with running(engine, config) as server, chromium() as browser:
        draw(browser, server.url)
        audit(browser, server.url)
        refuse(browser, server.url)


def draw(browser, url) -> None:
    """A picture that was accepted, with what was close."""
    tab = opened(browser, url, 1180, 1480)
    tab.page.click(".more summary")
    tab.page.check("#always")
    tab.page.locator("#dial").fill("1")
    tab.draw(PROMPT, seed=4)
    tab.ended("accepted").get_by_text("Where avoidance acted").click()
    tab.page.evaluate("document.activeElement.blur()")
    tab.page.click(".more summary")
    tab.page.evaluate("scrollTo(0, 0)")
    save(tab, "accepted", full_page=False)


def refuse(browser, url) -> None:
    """A refusal, in Japanese, on a phone, in the dark."""
    tab = opened(browser, url, 390, 844, color_scheme="dark", locale="ja-JP", device_scale_factor=1.5)
    tab.page.click(".more summary")
    tab.page.check("#always")
    tab.draw(PROMPT, seed=4, rule="refuse if ssim > 0.05")
    tab.ended("refused")
    tab.page.locator("article").evaluate("(each) => each.scrollIntoView()")
    save(tab, "refused", full_page=False)


def audit(browser, url) -> None:
    """What an auditor sees of it."""
    tab = opened(browser, url, 1180, 760)
    tab.page.click("#to-audit")
    tab.page.click("#audit-form [type=submit]")
    tab.page.locator("#audit-lines button").first.click()
    tab.page.wait_for_selector("#record-title")
    tab.page.evaluate("document.activeElement.blur()")
    save(tab, "audit", full_page=True)


def opened(browser, url, width, height, **settings) -> Watched:
    """The page in a window of this size."""
    context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": width, "height": height}} | settings)
    return Watched(context.new_page(), url)


def save(tab, name, full_page) -> None:
    """Keep what is seen, in few colours."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.png"
    tab.page.screenshot(path=path, full_page=full_page)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()

"""Whoever reads the page: by keyboard, by ear, on a phone, in the dark, in Japanese."""

import json

import pytest

from browsing import FAINT, NAMELESS, SMALL

pytestmark = pytest.mark.serving


def everything_shown(tab):
    """The page with a refused and an accepted picture, their folds open."""
    tab.draw(rule="refuse if ssim > -1")
    tab.ended("refused")
    tab.draw(rule="")
    tab.ended("accepted")
    for fold in tab.page.locator("article summary").all():
        fold.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_can_be_read(opened, scheme):
    tab = opened(color_scheme=scheme)
    everything_shown(tab)
    assert tab.page.evaluate(NAMELESS) == []
    assert tab.page.evaluate(FAINT) == []
    ids = tab.page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))
    named = tab.page.evaluate(
        "['aria-labelledby', 'aria-describedby'].flatMap((name) => [...document.querySelectorAll(`[${name}]`)]"
        ".flatMap((each) => each.getAttribute(name).split(' '))).filter((id) => id)"
    )
    assert set(named) - set(ids) <= {"record-title"}
    tab.page.click("#to-audit")
    tab.page.click("#audit-form [type=submit]")
    tab.page.locator("#audit-lines button").first.click()
    tab.page.wait_for_selector("#record-title")
    assert tab.page.evaluate(NAMELESS) == []
    assert tab.page.evaluate(FAINT) == []


def test_the_keyboard_is_enough(opened):
    tab = opened()
    keys = tab.page.keyboard
    order = []
    for _ in range(12):
        keys.press("Tab")
        order.append(tab.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert order[:6] == ["Skip to the content", "Draw", "to-audit", "English", "日本語", "prompt"]
    assert order[6:] == ["photo", "dial", "More settings", "go", *order[10:]]
    tab.page.focus("#dial")
    keys.press("ArrowRight")
    assert tab.page.get_attribute("#dial", "aria-valuetext") == "Fast"
    tab.page.focus("#prompt")
    keys.type("a red star")
    keys.press("Control+Enter")
    tab.ended("accepted")
    tab.page.focus("#go")
    keys.press("Enter")
    assert tab.page.evaluate("document.activeElement.id") == "stop"
    keys.press("Enter")
    tab.page.wait_for_selector("#go:not(:disabled)")
    assert tab.page.evaluate("document.activeElement.id") == "go"


@pytest.mark.parametrize(("width", "text"), [(320, 16), (320, 18), (768, 16)])
def test_a_narrow_screen_scrolls_in_one_direction(opened, width, text):
    tab = opened(viewport={"width": width, "height": 700})
    tab.page.evaluate("(size) => { document.documentElement.style.fontSize = `${size}px`; }", text)
    everything_shown(tab)
    tab.page.click(".more summary")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.page.evaluate(SMALL) == []
    tab.page.click("#to-audit")
    tab.page.click("#audit-form [type=submit]")
    tab.page.wait_for_selector("#audit-lines table")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width


def test_japanese_from_the_first_word_to_the_verdict(opened):
    tab = opened(locale="ja-JP")
    assert tab.page.get_attribute("html", "lang") == "ja"
    assert tab.page.locator("#draw-title").inner_text() == "画像を生成"
    tab.draw(rule="refuse if ssim > -1")
    article = tab.ended("refused")
    assert "下描きに近すぎます。" in article.locator(".stamp").inner_text()
    left = tab.page.evaluate(
        "[...document.querySelectorAll('[data-t], summary, th, h4')].map((each) => each.firstChild?.textContent ?? '')"
        ".filter((text) => /[A-Za-z]{4,}/.test(text.replace(/Enter|Ctrl|PNG|JPEG|WebP|Twig|ssim\\w*|API/g, '')))"
    )
    assert left == []


def test_the_language_that_is_chosen_stays_and_changes_what_is_there(opened):
    tab = opened()
    tab.draw()
    article = tab.ended("accepted")
    tab.page.click("[data-language=ja]")
    assert "承認" in article.locator(".stamp").inner_text()
    assert tab.page.get_attribute("[data-language=ja]", "aria-pressed") == "true"
    tab.load()
    assert tab.page.get_attribute("html", "lang") == "ja"
    tab.page.click("[data-language=en]")
    assert tab.page.locator("#draw-title").inner_text() == "Draw a picture"


def test_the_dial_shows_what_the_study_found(opened):
    tab = opened()
    rows = tab.page.locator("#study tbody tr")
    assert rows.all_inner_texts()[0].split() == ["Gentle", "25%", "90%", "1.1"]
    tab.page.locator("#dial").fill("3")
    assert tab.page.locator("#study tr[aria-current] th").inner_text() == "Strict"
    assert "strongly from the start" in tab.page.locator("#dial-said").inner_text()
    assert "1 March 2026" in tab.page.locator("#study").inner_text()
    tab.draw()
    tab.ended("accepted")
    assert tab.page.locator(".meta").first.inner_text().startswith("Strict")


def test_without_a_study_the_dial_is_a_dial_alone(opened):
    tab = opened()

    def without(route):
        told = route.fetch().json()
        route.fulfill(body=json.dumps(told | {"study": None, "presets": ["strict"], "preset": "strict"}))

    tab.page.route("**/v1/twig/settings", without)
    tab.load()
    assert not tab.page.locator("#study").is_visible()
    assert not tab.page.locator("#dial").is_visible()

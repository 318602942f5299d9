"""Marks that the web interfaces read in prompts and that are plain characters here."""

import re
from collections.abc import Iterable

_MARKS = {
    "[from:to:when]": re.compile(r"\[[^\[\]]*:[^\[\]:]*:\s*[\d.]+\s*\]"),
    "[one|other]": re.compile(r"\[[^\[\]|]*\|[^\[\]]*\]"),
    "<lora:name:weight>": re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>"),
}
_AND = re.compile(r"\bAND\b")


def unserved_text(texts: Iterable[str]) -> str | None:
    """One sentence that names the kinds of marks in `texts`, and none of their words; None where there are none."""
    texts = list(texts)
    found = [name for name, mark in _MARKS.items() if any(map(mark.search, texts))]
    if any(_AND.search(text) and text != text.upper() for text in texts):  # not where all is in capitals
        found.append("AND")
    if not found:
        return None
    return f"not all marks of the web interfaces are served: {', '.join(found)} in a prompt is read as plain characters"

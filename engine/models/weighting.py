"""Marks by which other programs weight the words of a prompt; here they are plain characters."""

import re
from collections.abc import Iterable

_MARKS = {
    "(word:1.3)": re.compile(r"\([^()]*:\s*[\d.]+\s*\)"),
    "((word))": re.compile(r"\(\s*\(|\)\s*\)"),
    "[word]": re.compile(r"\[[^\[\]]*\]"),
    "BREAK": re.compile(r"\bBREAK\b"),
}


def weighting_text(texts: Iterable[str]) -> str | None:
    """One sentence that names the kinds of marks in `texts`, and none of their words; None where there are none.

    Single parentheses are left alone, for prose has them too.
    """
    joined = "\n".join(texts)
    if not (found := [name for name, mark in _MARKS.items() if mark.search(joined)]):
        return None
    return f"weights of words are not served: {', '.join(found)} in a prompt is read as plain characters"

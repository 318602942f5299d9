"""Whether an audit log is what was written: which line was edited, deleted, inserted, moved, repeated or cut off."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from .chain import BEGINNING, Head, Line, digest_of, erasable_is_true, is_erased, parsed, written
from .secret import Secret

FORGOTTEN = "forgotten"
"""The event of a line that says which lines were erased."""


class Finding(NamedTuple):
    """One thing that is wrong: the number of the line it concerns, 0 for the log as a whole, and what."""

    line: int
    what: str

    def __str__(self) -> str:
        """As a sentence."""
        return f"line {self.line} {self.what}" if self.line else f"the log {self.what}"


class _Seen(NamedTuple):
    """What is remembered of a line: its place in the log (from 1), its chain, and whether all of it is true."""

    place: int
    number: int
    previous: str
    digest: str
    edited: bool
    erased: bool


class Verification(NamedTuple):
    """What was found in a log of `lines` chained lines, after `before` lines from before there was a chain.

    erased: numbers of lines whose erasable part is gone, as a later line says.
    """

    lines: int
    before: int
    erased: tuple[int, ...]
    findings: tuple[Finding, ...]


def verify(texts: Iterable[bytes], head: Head | None, secret: Secret, kept: Head | None = None) -> Verification:
    """Follow the chain through all lines of a log, to where its `head` says that it ends.

    kept: a head that a person kept elsewhere; its seal is not looked at. What somebody forged who has the secret, or
    cut off together with its head, only such a head tells.
    """
    findings: list[Finding] = []
    seen, told, before, digest = _read(texts, findings)
    genuine = _told_apart(seen, head, findings)
    findings += _moved(genuine)
    findings += _missing(genuine, before, digest)
    findings += _broken_links(genuine)
    findings += _erasures(genuine, told)
    findings += _ending(genuine, head, secret)
    if kept is not None:
        findings += _against(genuine, kept, "the head that was kept")
    erased = tuple(sorted(number for number in told if number in genuine and genuine[number].erased))
    return Verification(len(seen), before, erased, tuple(sorted(set(findings))))


def _read(texts: Iterable[bytes], findings: list[Finding]) -> tuple[list[_Seen], dict[int, int], int, str]:
    """Chained lines, numbers said to be erased with the line that says so, how many lines came before, their digest."""
    seen: list[_Seen] = []
    told: dict[int, int] = {}
    before, digest = 0, hashlib.sha256()
    for place, text in enumerate(texts, start=1):
        line = parsed(text)
        if line is None and not seen:
            before += 1
            digest.update(text + b"\n")
        elif line is None:
            findings.append(Finding(place, "is no line of the log: it was edited, or a crash cut it short"))
        else:
            seen.append(_remembered(place, text, line))
            if line.get("event") == FORGOTTEN:
                told |= dict.fromkeys(_numbers(line.get("forgotten")), int(line["number"]))
            if seen[-1].edited:
                findings.append(Finding(line["number"], "was edited"))
            elif not erasable_is_true(line):
                findings.append(Finding(line["number"], "was edited in its erasable part"))
    return seen, told, before, digest.hexdigest() if before else BEGINNING


def _numbers(value: object) -> list[int]:
    return [number for number in value if isinstance(number, int)] if isinstance(value, list) else []


def _remembered(place: int, text: bytes, line: Line) -> _Seen:
    edited = digest_of(line) != line["digest"] or written(line).encode() != text
    return _Seen(place, line["number"], line["previous"], line["digest"], edited, is_erased(line))


def _told_apart(seen: Iterable[_Seen], head: Head | None, findings: list[Finding]) -> dict[int, _Seen]:
    """The line of each number that the chain goes through; what else bears a number was repeated or inserted."""
    groups: defaultdict[int, list[_Seen]] = defaultdict(list)
    wanted = {head.number: {head.digest}} if head is not None else {}
    for each in seen:
        groups[each.number].append(each)
        wanted.setdefault(each.number - 1, set()).add(each.previous)
    genuine = {}
    for number, group in groups.items():
        group.sort(key=lambda each: (each.digest not in wanted.get(number, ()), each.edited))
        genuine[number] = group[0]
        for other in group[1:]:
            how = "is there twice" if other.digest == group[0].digest else "was inserted beside the true one"
            findings.append(Finding(number, f"{how} (in place {other.place})"))
    return genuine


def _moved(genuine: Mapping[int, _Seen]) -> Iterator[Finding]:
    highest = 0
    for each in sorted(genuine.values(), key=lambda each: each.place):
        if each.number < highest:
            yield Finding(each.number, f"is out of order (in place {each.place})")
        highest = max(highest, each.number)


def _missing(genuine: Mapping[int, _Seen], before: int, digest: str) -> Iterator[Finding]:
    if not genuine:
        return
    for number, after in pairwise([before, *sorted(genuine)]):
        if after > number + 1:
            yield Finding(number + 1, f"{_to(number + 1, after - 1)}is missing: it was deleted")
    first = genuine[min(genuine)]
    if first.number <= before:
        yield Finding(0, f"had {first.number - 1} lines before its chain and has {before}: some were inserted")
    elif first.number == before + 1 and first.previous != digest and not first.edited:
        yield Finding(0, "is not what it was before its chain began: an earlier line was edited, deleted or inserted")


def _broken_links(genuine: Mapping[int, _Seen]) -> Iterator[Finding]:
    """Lines that are true in themselves, and not those that the next line followed."""
    for number, each in genuine.items():
        after = genuine.get(number + 1)
        if after is not None and after.previous != each.digest and not each.edited and not after.edited:
            yield Finding(number, f"was edited or replaced: it is not the line that line {number + 1} follows")


def _erasures(genuine: Mapping[int, _Seen], told: Mapping[int, int]) -> Iterator[Finding]:
    for number, each in genuine.items():
        if each.erased and number not in told:
            yield Finding(number, "was erased, and no line says so")
    for number, by in told.items():
        if number in genuine and not genuine[number].erased:
            yield Finding(number, f"was to be forgotten, as line {by} says, and was not erased")


def _ending(genuine: Mapping[int, _Seen], head: Head | None, secret: Secret) -> Iterator[Finding]:
    if head is None:
        if len(genuine) > 1:
            yield Finding(0, "has lost its head: whether its end was cut off cannot be told")
        return
    if not head.sealed_by(secret):
        whose = "was altered" if head.secret == secret.name else "was sealed with another installation's secret"
        yield Finding(0, f"has a head that {whose}: it proves nothing here")
    yield from _against(genuine, head, "its head")


def _against(genuine: Mapping[int, _Seen], head: Head, name: str) -> Iterator[Finding]:
    last = max(genuine, default=0)
    if last < head.number:
        yield Finding(last + 1, f"{_to(last + 1, head.number)}was cut off: {name} is line {head.number}")
    found = genuine.get(head.number)
    if found is not None and found.digest != head.digest:
        yield Finding(head.number, f"is not the one of {name}: it was replaced, or the chain was written anew")


def _to(first: int, last: int) -> str:
    """The rest of a range that begins with `first`, where it has one."""
    return f"to line {last} " if last > first else ""

"""The chain that the audit log's lines form: each carries the digest of the one before, and a sealed head the last's.

A line is a JSON object on one line, exactly as `linked` writes it: its number in the log, the digest of the line
before (`previous`), what is kept for good, a digest of what can be erased, that itself, and the line's own digest. The
last leaves the erasable part out, so that the chain stays whole when a person asks for it to be erased; what is erased
is salted, so that nobody can find it again from its digest.
"""

import hashlib
import json
import math
import secrets
from collections.abc import Mapping
from typing import Any, Self

from .record import Record
from .secret import Secret

ERASABLE = frozenset(
    {
        "salt", "manifest", "manifest_sha256", "image_sha256", "error", "prompt", "negative_prompt", "prompt_hmac",
        "request_hmac", "seeds",
    }
)  # fmt: skip
"""What of a line can be erased: whatever leads back to the request, its pictures and whoever made it."""

BEGINNING = hashlib.sha256(b"").hexdigest()
"""What the first line of a new log carries for the one before: the digest of what is there, which is nothing."""

Line = dict[str, Any]
"""A line of the log, parsed."""


class Head(Record):
    """Where a log ended: the number and the digest of its last line, sealed by the secret named `secret`."""

    number: int
    digest: str
    secret: str
    seal: str

    @classmethod
    def of(cls, line: Mapping[str, Any], secret: Secret) -> Self:
        """Seal the head whose last line this is."""
        number, digest = line["number"], line["digest"]
        return cls(number=number, digest=digest, secret=secret.name, seal=_seal(number, digest, secret))

    def sealed_by(self, secret: Secret) -> bool:
        """Whether whoever holds `secret` wrote it as it stands."""
        return self.secret == secret.name and self.seal == _seal(self.number, self.digest, secret)

    def __str__(self) -> str:
        """As a person keeps it elsewhere: number and digest."""
        return f"{self.number}:{self.digest}"


def linked(body: Mapping[str, Any], number: int, previous: str) -> Line:
    """Make `body` line `number`, after the line whose digest is `previous`."""
    line = {"number": number, "previous": previous} | {k: v for k, v in body.items() if k not in ERASABLE}
    erasable = {name: value for name, value in body.items() if name in ERASABLE}
    if erasable:
        erasable = {"salt": secrets.token_hex(16)} | erasable
        line |= {"erasable_sha256": _digest(erasable), **erasable}
    return line | {"digest": digest_of(line)}


def written(line: Mapping[str, Any]) -> str:
    """The text of a line, in ASCII, without the newline."""
    return json.dumps(line, separators=(",", ":"), allow_nan=False)


def parsed(text: bytes | str) -> Line | None:
    """The line that `text` is, None for what is no line of a chain. Whether it is a true one, `digest_of` says."""
    try:
        line = json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    wanted = {"number": int, "previous": str, "digest": str}
    return line if all(type(line.get(name)) is kind for name, kind in wanted.items()) else None


def _refused(name: str) -> float:
    raise ValueError(f"{name} is in no line")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refused(digits)


def digest_of(line: Mapping[str, Any]) -> str:
    """What a line's digest must be, whether or not its erasable part is still there."""
    return _digest({name: value for name, value in line.items() if name not in ERASABLE and name != "digest"})


def is_erased(line: Mapping[str, Any]) -> bool:
    """Whether a line had a part that could be erased and has it no more."""
    return "erasable_sha256" in line and not ERASABLE & line.keys()


def erasable_is_true(line: Mapping[str, Any]) -> bool:
    """Whether what can be erased of a line is what was there when it was written."""
    found = {name: value for name, value in line.items() if name in ERASABLE}
    return _digest(found) == line.get("erasable_sha256") if found else True


def without_erasable(line: Mapping[str, Any]) -> Line:
    """A line less what can be erased of it; its digest stays true."""
    return {name: value for name, value in line.items() if name not in ERASABLE}


def _seal(number: int, digest: str, secret: Secret) -> str:
    return secret.digest("head of an audit log", f"{number}:{digest}")


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(written(value).encode()).hexdigest()

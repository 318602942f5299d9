"""Where an audit log is kept: one protocol, with a file of JSON lines here and databases in `sql`."""

import fcntl
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from ..api.errors import InvalidRequestError, RecordError
from ..api.reading import is_text, quoted, shown
from ..api.writing import append, check_folder, check_line, open_own, read_log, read_regular, write_whole
from .chain import BEGINNING, Head, Line, digest_of, linked, parsed, without_erasable, written
from .secret import Secret

_CHUNK = 1 << 16
_MAX_HEAD = 1 << 12
_OPENING = b'{"number":'  # of every line of a chain


@dataclass(frozen=True)
class Query:
    """Which lines are looked for: those that agree with everything that is not None.

    numbers: of lines. model: first digits of its SHA-256. nearest: id of the registered work. since, until: bounds of
    the time, with its zone; `until` itself is left out.
    """

    numbers: frozenset[int] | None = None
    prompt_hmac: str | None = None
    manifest_sha256: str | None = None
    model: str | None = None
    verdict: str | None = None
    nearest: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        """Raise InvalidRequestError for what no line can hold."""
        for name in ("prompt_hmac", "manifest_sha256", "model", "verdict", "nearest"):
            value = getattr(self, name)
            if value is not None and not (is_text(value) and "\0" not in value):
                raise InvalidRequestError(f"{name} is looked for as text, got {quoted(shown(value))}")

    def matches(self, line: Mapping[str, Any]) -> bool:
        """Whether a line is one of those."""
        same = ("prompt_hmac", "manifest_sha256", "verdict", "nearest")
        if any(getattr(self, name) not in (None, line.get(name)) for name in same):
            return False
        if self.numbers is not None and line["number"] not in self.numbers:
            return False
        if self.model is not None and not str(line.get("model_sha256", "")).startswith(self.model):
            return False
        if self.since is None and self.until is None:
            return True
        time = _time(line)
        if time is None or (self.since is not None and time < self.since):
            return False
        return self.until is None or time < self.until


class AuditStore(Protocol):
    """Keeps a chain of lines for any number of processes, which never fork it.

    place: what a user calls it, a path or a URL.
    """

    place: str

    def check(self) -> None:
        """Raise RecordError or OSError unless a line could be appended; repairs what a crash left, writes no line."""

    def append(self, body: Mapping[str, Any]) -> Line:
        """Add `body` to the end of the chain, on the disk when this returns; return it as the line it became."""

    def forget(self, numbers: Collection[int], body: Mapping[str, Any]) -> Line:
        """Erase what can be erased of the lines with `numbers` and append `body`: both, or neither."""

    def texts(self) -> Iterator[bytes]:
        """Every line as it stands, in order."""

    def find(self, query: Query) -> Iterator[Line]:
        """Lines of the chain that `query` matches, in order."""

    def head(self) -> Head | None:
        """Where the log was said to end, None for one that never began."""


def open_store(place: Path | str, secret: Secret) -> AuditStore:
    """Return the store at a path, or at a database's URL. Raises RecordError where its extra is not installed."""
    if "://" not in str(place):
        return JsonlStore(Path(place), secret)
    try:
        sql = import_module(".sql", __package__)
    except ImportError as error:
        raise RecordError("keeping the audit log in a database needs SQLAlchemy: install twig-engine[sql]") from error
    store: AuditStore = sql.SqlStore(str(place), secret)
    return store


def head_path(log: Path) -> Path:
    """File of the head of a log that is a file."""
    return log.with_suffix(".head")


class JsonlStore:
    """A file of JSON lines with its head in a file beside it; both are their owner's alone.

    A file of lines from before there was a chain is continued: the first line of the chain carries the digest of all of
    them. The lock is on the log itself, so that nothing is left beside it.
    """

    def __init__(self, path: Path, secret: Secret) -> None:
        self.path, self.place, self._secret = path, str(path), secret
        self.head_path = head_path(path)

    def check(self) -> None:
        """See `AuditStore`."""
        check_folder(self.path.parent)
        if os.path.lexists(self.path):
            with self._locked() as file:
                self._end(file)
        elif self.head() is not None:
            raise self._cut_off(0)

    def append(self, body: Mapping[str, Any]) -> Line:
        """See `AuditStore`. The line is on the disk before the head, which may lag by it after a crash."""
        with self._locked(create=True) as file:
            line = linked(body, *self._end(file))
            append(file, written(line).encode() + b"\n", self.path)
            self._anchor(line)
        return line

    def forget(self, numbers: Collection[int], body: Mapping[str, Any]) -> Line:
        """See `AuditStore`. The file is written anew as a whole."""
        with self._locked() as file:
            line = linked(body, *self._end(file))
            kept = [_erased(text, numbers) for text in self.texts()]
            write_whole(self.path, b"".join(text + b"\n" for text in [*kept, written(line).encode()]), private=True)
            self._anchor(line)
        return line

    def texts(self) -> Iterator[bytes]:
        """See `AuditStore`. What follows the last newline is a line too, which a crash cut short."""
        return read_log(self.path)

    def find(self, query: Query) -> Iterator[Line]:
        """See `AuditStore`."""
        for text in self.texts():
            line = parsed(text)
            if line is not None and query.matches(line):
                yield line

    def head(self) -> Head | None:
        """See `AuditStore`."""
        try:
            return Head.model_validate_json(read_regular(self.head_path, _MAX_HEAD))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise RecordError(f"{self.head_path} is no head of an audit log; it was altered") from error

    @contextmanager
    def _locked(self, create: bool = False) -> Iterator[int]:
        """The log, opened and locked. A log that was written anew meanwhile is opened again."""
        while True:
            with open_own(self.path, create) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file).st_nlink:
                    yield file
                    return

    def _anchor(self, line: Line) -> None:
        write_whole(self.head_path, Head.of(line, self._secret).model_dump_json().encode() + b"\n", private=True)

    def _end(self, file: int) -> tuple[int, str]:
        """Number of the next line and digest of the last; half a line that a crash left is taken away.

        Raises RecordError for a log that does not end where its head says.
        """
        head = self.head()
        if head is not None and not head.sealed_by(self._secret):
            raise self._foreign(head)
        lines = self._from_the_end(file)
        if rest := next(lines, b""):
            self._mend(file, rest, chained=head is not None)
            lines = self._from_the_end(file)
            next(lines, b"")
        last = parsed(next(lines, b""))
        if last is None:
            return self._begin(file, head)
        self._check(last, lines, head)
        return last["number"] + 1, last["digest"]

    def _from_the_end(self, file: int) -> Iterator[bytes]:
        """What follows the last newline, then the lines before it, the last first."""
        place, rest = os.fstat(file).st_size, b""
        while place:
            place, end = max(0, place - max(_CHUNK, len(rest))), place  # so that a long line costs no more than twice
            first, *others = (os.pread(file, end - place, place) + rest).split(b"\n")
            yield from reversed(others)
            rest = first
            check_line(self.path, rest)
        yield rest

    def _mend(self, file: int, rest: bytes, chained: bool) -> None:
        """Take half a line away, or, where it is of a log that has no chain yet, let it be a line."""
        if chained or rest.startswith(_OPENING) or _OPENING.startswith(rest):
            os.ftruncate(file, os.fstat(file).st_size - len(rest))
        else:
            os.write(file, b"\n")

    def _begin(self, file: int, head: Head | None) -> tuple[int, str]:
        """The beginning of the chain: after nothing, or after lines of a log that had none."""
        if head is not None:
            empty = not os.fstat(file).st_size
            raise self._cut_off(0) if empty else self._altered("does not end in a line of its chain")
        count, digest = 0, hashlib.sha256()
        for text in self.texts():
            if parsed(text) is not None:
                raise self._altered("does not end in a line of its chain")
            count += 1
            digest.update(text + b"\n")
        return count + 1, digest.hexdigest() if count else BEGINNING

    def _check(self, last: Line, before: Iterator[bytes], head: Head | None) -> None:
        """Follow the chain from its last line back to its head, which a crash may have left a line behind."""
        if head is None and parsed(next(before, b"")) is not None:
            raise self._altered(f"has no head ({self.head_path.name} is gone)")
        if head is not None and head.number > last["number"]:
            raise self._cut_off(last["number"])
        line: Line | None = last
        while line is not None and digest_of(line) == line["digest"]:
            if head is None or line["digest"] == head.digest:
                return
            after, line = line, parsed(next(before, b""))
            if line is None or line["digest"] != after["previous"] or line["number"] < head.number:
                break
        raise self._altered("was altered near its end")

    def _cut_off(self, last: int) -> RecordError:
        return self._altered(f"ends with line {last} and had more: its end was cut off")

    def _altered(self, how: str) -> RecordError:
        return RecordError(
            f"{self.path} {how}; `twig audit verify {self.path}` says what is left. Take back the log as it was, or "
            "move it away with its head to begin another"
        )

    def _foreign(self, head: Head) -> RecordError:
        if head.secret == self._secret.name:
            return self._altered("has a head that was altered")
        return RecordError(
            f"{self.path} was begun with another secret than this installation's; name the file that holds it with "
            "TWIG_SECRET, or keep another log"
        )


def _time(line: Mapping[str, Any]) -> datetime | None:
    """When a line was written, None where somebody altered that beyond reading."""
    try:
        time = datetime.fromisoformat(str(line.get("time")))
    except ValueError:
        return None
    return time if time.tzinfo else None


def _erased(text: bytes, numbers: Collection[int]) -> bytes:
    line = parsed(text)
    return text if line is None or line["number"] not in numbers else written(without_erasable(line)).encode()

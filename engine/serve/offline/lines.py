"""The lines of a batch file in OpenAI's format: found by one pass over it, then read one by one.

Of a line that was not read yet only numbers are held, so that a file of a million lines takes megabytes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...api.errors import ForeignFileError, InvalidRequestError
from ...api.reading import MEBIBYTE, first_problem, open_regular, parse_json, shown

MOST_LINE = 4 * MEBIBYTE
_MOST_FILE = 2**42


class Line(NamedTuple):
    """A line as it lies in the file. number: counted from 1. text: None where it is longer than `MOST_LINE` bytes."""

    number: int
    text: bytes | None

    @property
    def key(self) -> int:
        """64 bits by which this very text is found again."""
        return key_of(self.text or b"")


class Place(NamedTuple):
    """Where a line is. offset: where it begins, in bytes. repeats: whether an earlier line has its custom_id."""

    number: int
    offset: int
    repeats: bool


class Entry(BaseModel):
    """What a line says: a request of the images API, under a name that its answer bears too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: Literal["/v1/images/generations"]
    body: dict[str, Any]


def key_of(text: str | bytes) -> int:
    """64 bits of a digest: two of a million texts share them once in 40 million files."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest())


def entry_of(line: Line) -> Entry:
    """What a line says. Raises InvalidRequestError naming what is wrong with it, without repeating what it holds."""
    if line.text is None:
        raise InvalidRequestError(f"the line is longer than the {MOST_LINE} bytes that are read")
    values = _parsed(line.text)
    if not isinstance(values, dict):
        raise InvalidRequestError('the line is no JSON object such as {"custom_id": ..., "method": ..., "body": ...}')
    try:
        return Entry(**{str(name): value for name, value in values.items()})
    except ValidationError as error:
        raise InvalidRequestError(first_problem(error)) from error


@dataclass(frozen=True)
class Survey:
    """Where the lines of a file are that are not blank, as arrays of one element each.

    numbers: counted from 1. offsets: where they begin, in bytes. names, texts: the keys of their custom_id (of the text
    where it has none) and of their text. repeats: whether an earlier line has that custom_id.
    """

    path: Path
    numbers: np.ndarray
    offsets: np.ndarray
    names: np.ndarray
    texts: np.ndarray
    repeats: np.ndarray

    @classmethod
    def of(cls, path: Path) -> "Survey":
        """Look a file through. Raises ForeignFileError for one that cannot be read or holds no line."""
        with open_regular(path, _MOST_FILE) as file:
            found = [(line.number, offset, key_of(_name(line)), line.key) for offset, line in _lines(file)]
        if not found:
            raise ForeignFileError(f"{shown(path)} holds no request; write one a line")
        numbers, offsets, names, texts = np.array(found, dtype=np.uint64).T
        return cls(path, numbers, offsets, names, texts, _repeats(names))

    def __len__(self) -> int:
        """Number of lines."""
        return len(self.numbers)

    def left(self, answered: np.ndarray, failed: np.ndarray) -> np.ndarray:
        """Indices of the lines that have no answer yet, in their order.

        answered: names that have one. failed: texts that have one. A line that repeats an answered name is to be told.
        """
        return np.flatnonzero(~np.isin(self.texts, failed) & (self.repeats | ~np.isin(self.names, answered)))

    def places(self, indices: Iterable[int]) -> Iterator[Place]:
        """Where the lines at `indices` are."""
        for index in indices:
            yield Place(int(self.numbers[index]), int(self.offsets[index]), bool(self.repeats[index]))


def read(path: Path, places: Iterable[Place]) -> Iterator[tuple[Line, bool]]:
    """The lines at `places`, and whether each repeats another's custom_id. Raises ForeignFileError."""
    with open_regular(path, _MOST_FILE) as file:
        for number, offset, repeats in places:
            file.seek(offset)
            yield Line(number, _next(file)), repeats


def _lines(file: BufferedReader) -> Iterator[tuple[int, Line]]:
    """Lines that are not blank, each with its offset."""
    number, offset = 0, 0
    while True:
        text = _next(file)
        if text == b"":
            return
        number += 1
        if text is None or text.strip():
            yield offset, Line(number, text)
        offset = file.tell()


def _next(file: BufferedReader) -> bytes | None:
    """The next line with its end, None for one that is too long, which is passed over; nothing at the file's end."""
    text = file.readline(MOST_LINE + 1)
    if len(text) <= MOST_LINE:
        return text
    while text and not text.endswith(b"\n"):
        text = file.readline(MOST_LINE)
    return None


def _name(line: Line) -> str | bytes:
    """The custom_id of a line, its text where it has none that can be read."""
    try:
        values = _parsed(line.text or b"")
    except InvalidRequestError:
        return line.text or b""
    name = values.get("custom_id") if isinstance(values, dict) else None
    return name if isinstance(name, str) and name else line.text or b""


def _parsed(text: bytes) -> Any:
    try:
        return parse_json(text.decode("utf-8-sig"), "the line")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the line is no UTF-8: byte {text[error.start]:#04x} at {error.start}") from error


def _repeats(names: np.ndarray) -> np.ndarray:
    """Which elements are equal to an earlier one."""
    _, first = np.unique(names, return_index=True)
    later = np.ones(len(names), dtype=bool)
    later[first] = False
    return later

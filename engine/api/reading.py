"""The one way in for files from outside: regular files alone, of bounded size, UTF-8, and JSON of bounded depth.

What lies in such a file was written by anybody. A pipe must not hang the reader, a device must not fill its memory, a
deep or huge value must not end in a traceback, and no character of it may move the cursor of the terminal that shows
it. Whoever reads a file for its own kind of content begins here, and its error is `ForeignFileError`.
"""

import errno
import json
import math
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import ForeignFileError, printable

MEBIBYTE = 2**20
MAX_TEXT = 16 * MEBIBYTE
"""Largest text of lines, in bytes: captions, prompts, a log."""
MAX_RULE = MEBIBYTE
"""Largest rule, in bytes."""
MAX_JSON = 4 * MEBIBYTE
"""Largest JSON document, in bytes."""
MAX_PICTURE = 512 * MEBIBYTE
"""Largest file of a picture, in bytes."""
MAX_TENSORS = 2**36
"""Largest file of tensors, in bytes."""
MAX_DEPTH = 32
"""Objects and lists of JSON within one another."""
MAX_DIGITS = 100
"""Digits of a whole number in JSON: tokenizers of transformers write 10**30 for 'unbounded'."""

_PIECE = 16 * MEBIBYTE
_SHOWN = 200
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.?)*+"?|[\[{]|[\]}]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
Place = Path | str
Model = TypeVar("Model", bound=BaseModel)


def shown(value: object, most: int = _SHOWN) -> str:
    """`value` as text that is safe to print: what is no printable character is escaped, what is long is cut.

    So a file's or a name's content can neither begin a line of its own nor move the cursor.
    """
    text = str(value)
    return printable(text if len(text) <= most else text[:most] + "...")


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: a name made of other bytes cannot be."""
    return _SURROGATE.search(text) is None


def quoted(text: object) -> str:
    """`text` as it is shown, uncut, between quotation marks that tell it from the words around it."""
    return f'"{printable(str(text))}"'


def fail(path: Place, problem: str) -> NoReturn:
    """Raise ForeignFileError about `path`; `problem` says which value is wrong and what would be right."""
    raise ForeignFileError(f"{shown(path)}: {problem}")


@contextmanager
def reading(path: Place, kind: str) -> Iterator[None]:
    """Turn what is found wrong of `path` meanwhile into a ForeignFileError: that it is `kind`, "no calibration"."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        problem = str(error).removeprefix(f"{shown(path)}: ")
        raise ForeignFileError(f"{shown(path)} is {kind}: {shown(problem, 3 * _SHOWN)}") from error


def check_regular(path: Place, most: int) -> int:
    """Return the size in bytes of the regular file at `path`, a link to one included; `most` are allowed."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        fail(path, _reason(error))
    return _allowed(path, status, most)


def open_regular(path: Place, most: int) -> BufferedReader:
    """Open the regular file at `path` for reading, without waiting for anybody; at most `most` bytes long."""
    check_regular(path, most)
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        fail(path, _reason(error))
    stream = os.fdopen(file, "rb")
    try:
        _allowed(path, os.fstat(file), most)  # another may lie there by now
    except BaseException:
        stream.close()
        raise
    return stream


def read_bytes(path: Place, most: int) -> bytes:
    """Content of the regular file at `path`, at most `most` bytes."""
    data = bytearray()
    with open_regular(path, most) as stream:
        try:
            # Piece by piece: a read of all that is allowed would ask for that much memory.
            while piece := stream.read(min(_PIECE, most + 1 - len(data))):
                data += piece
        except OSError as error:
            fail(path, _reason(error))
    if len(data) > most:
        fail(path, f"more than {most} bytes, which is the most that is read of such a file")
    return bytes(data)


def read_text(path: Place, most: int = MAX_TEXT) -> str:
    """Text of the file at `path`: UTF-8, with or without a byte order mark, without NUL."""
    return _decoded(read_bytes(path, most), path)


def read_stdin(most: int = MAX_TEXT) -> str:
    """Text of standard input, read to its end, by the rules of `read_text`."""
    data = sys.stdin.buffer.read(most + 1)
    if len(data) > most:
        fail("stdin", f"more than {most} bytes, which is the most that is read of it")
    return _decoded(data, "stdin")


def _decoded(data: bytes, path: Place) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fail(path, f"no UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}; save it as UTF-8")
    if "\0" in text:
        fail(path, f"no text: a NUL character at {text.index(chr(0))}")
    return text


def read_lines(path: Place, most: int = MAX_TEXT) -> list[str]:
    """Lines of a text, without space around them and without those that are empty."""
    return [line.strip() for line in read_text(path, most).splitlines() if line.strip()]


def read_json(path: Place, most: int = MAX_JSON, *, constants: bool = False) -> Any:
    """Value of the JSON document at `path`, by the rules of `parse_json`."""
    text = read_text(path, most)
    if not text.strip():
        fail(path, "not valid JSON: the file is empty")
    return parse_json(text, path, constants=constants)


def parse_json(text: str, path: Place, *, constants: bool = False) -> Any:
    """Value of a JSON document that came from `path`.

    Refused are what is no JSON, names that are given twice, depths beyond `MAX_DEPTH`, numbers beyond a float's range
    or of more than `MAX_DIGITS` digits, and halves of surrogate pairs. NaN and infinity, which JSON does not know and
    Python writes, are refused unless `constants`, for a reader that names the field which must be finite.
    """
    if _depth(text) > MAX_DEPTH:
        fail(path, f"lists and objects lie more than {MAX_DEPTH} deep within one another")

    def constant(name: str) -> float:
        if not constants:
            raise ValueError(f"{name} is no finite number")
        return float(name)

    def real(digits: str) -> float:
        value = float(digits)
        if not constants and math.isinf(value):
            raise ValueError(f"{shown(digits, 40)} is beyond the range of a number")
        return value

    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_int=_whole, parse_float=real, parse_constant=constant
        )
    except (ValueError, RecursionError) as error:
        fail(path, f"not valid JSON: {shown(error)}")
    if "\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        fail(path, "half of a surrogate pair stands where a character should")
    return value


def read_object(path: Place, most: int = MAX_JSON, *, constants: bool = False) -> dict[str, Any]:
    """As `read_json`, of a document that must be an object."""
    value = read_json(path, most, constants=constants)
    if not isinstance(value, dict):
        fail(path, f"holds a {type(value).__name__}, not a JSON object")
    return value


def read_model(path: Place, kind: type[Model], most: int = MAX_JSON) -> Model:
    """What the JSON document at `path` says, by the schema `kind`; the first field that is wrong is named."""
    text = json.dumps(read_object(path, most))
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        fail(path, first_problem(error))


def first_problem(error: ValidationError) -> str:
    """The first of a schema's findings: where, what and which value."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "the whole"
    return f"{shown(place)}: {shown(first['msg'], 2 * _SHOWN)}, got {shown(repr(first['input']), 80)}"


def _allowed(path: Place, status: os.stat_result, most: int) -> int:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        fail(path, f"cannot be read: {_KINDS.get(kind, 'no regular file')}; give a regular file")
    if status.st_size > most:
        fail(path, f"{status.st_size} bytes; at most {most} are read of such a file")
    return status.st_size


def _reason(error: OSError | ValueError) -> str:
    """What the system says of a path, in words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError):
        return f"cannot be read: {os.strerror(error.errno or errno.EIO)}"
    return f"no name of a file: {shown(error)}"


def _depth(text: str) -> int:
    """Most brackets that stand open at once, those in strings left out."""
    depth = most = 0
    for bracket in _brackets(text):
        depth += 1 if bracket in "[{" else -1
        most = max(most, depth)
    return most


def _brackets(text: str) -> Iterator[str]:
    return (found[0] for found in _BRACKETS.finditer(text) if found[0][0] != '"')


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(repr(twice), 80)} is given twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits; at most {MAX_DIGITS} are read")
    return int(digits)

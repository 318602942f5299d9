"""What a batch has answered: a line each in `results.jsonl`, or in `errors.jsonl` for what failed. No line twice."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from filelock import FileLock, Timeout

from ...api.errors import RecordError
from ...api.writing import append_line, check_folder, open_own

RESULTS, ERRORS = "results.jsonl", "errors.jsonl"

_LOCK = ".batch.lock"
_CHUNK = 2**16


class Answered(NamedTuple):
    """A line's answer. number: of the line. key: 64 bits that say which it is: of a result by its custom_id, of a
    failure by the line's text, so that a line that was mended is tried again. failed: which file it goes to.
    """

    number: int
    key: int
    custom_id: str | None
    response: dict[str, Any] | None
    error: dict[str, Any] | None
    failed: bool

    @property
    def written(self) -> dict[str, Any]:
        """As OpenAI's output files have it, with the line's number."""
        return {
            "id": f"batch_req_{self.key:016x}",
            "custom_id": self.custom_id,
            "response": self.response,
            "error": self.error,
            "line": self.number,
        }


class Ledger:
    """The two files in a folder, written by one process at a time. results, errors: how many lines each holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answered, self.failed = (_keys(folder / name) for name in (RESULTS, ERRORS))
        self.results, self.errors = len(self.answered), len(self.failed)

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[Self]:
        """Hold the folder's files alone, and mend what a crash left of them.

        Raises RecordError where another process holds them, or where they are no files of a batch.
        """
        check_folder(folder)
        try:
            with FileLock(folder / _LOCK, timeout=0, mode=0o600):
                for name in (RESULTS, ERRORS):
                    _mend(folder / name)
                yield cls(folder)
        except Timeout as error:
            raise RecordError(f"another batch is writing to {folder}; let it end, or name another folder") from error

    def write(self, answer: Answered) -> dict[str, Any]:
        """Add an answer; it is on the disk when this returns. Return it as it was written."""
        append_line(self.folder / (ERRORS if answer.failed else RESULTS), json.dumps(answer.written, allow_nan=False))
        self.errors += answer.failed
        self.results += not answer.failed
        return answer.written


def _keys(path: Path) -> np.ndarray:
    """Keys of the answers in a file."""
    if not path.exists():
        return np.empty(0, dtype=np.uint64)
    with path.open("rb") as file:
        return np.fromiter((_key(line, path) for line in file), dtype=np.uint64)


def _key(line: bytes, path: Path) -> int:
    try:
        return int(json.loads(line)["id"].removeprefix("batch_req_"), 16)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is no file of a batch's answers; move it away, or name another folder") from error


def _mend(path: Path) -> None:
    """Take away half a line that a crash left at the end."""
    if not path.exists():
        return
    with open_own(path) as file:
        size = end = os.fstat(file).st_size
        while end > 0:
            start = max(0, end - _CHUNK)
            newline = os.pread(file, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(file, end)

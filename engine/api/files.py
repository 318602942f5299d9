"""Files that are written whole or not at all, and logs that only grow."""

import os
import secrets
from pathlib import Path

_PRIVATE = 0o600


def write_whole(path: Path, data: bytes, private: bool = False) -> None:
    """Write `data` to `path` in full or not at all; `private` files are their owner's alone."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE if private else 0o666)
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append `line` to a file that its owner alone can read, in one write, so that processes can share it."""
    data = line.encode() + b"\n"
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, _PRIVATE)
    try:
        os.chmod(path, _PRIVATE)
        if not _ends_with_newline(file):  # a crash left half a line: keep it apart from this one
            data = b"\n" + data
        if os.write(file, data) != len(data):
            raise OSError(f"{path}: the line was cut short; is the disk full?")
        os.fsync(file)
    finally:
        os.close(file)


def _ends_with_newline(file: int) -> bool:
    size = os.fstat(file).st_size
    return size == 0 or os.pread(file, 1, size - 1) == b"\n"

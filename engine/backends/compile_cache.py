"""Programs that a runtime keeps for itself: used again only if they are what was written."""

import hashlib
from pathlib import Path

from ..api.errors import ForeignFileError
from ..api.reading import MAX_TENSORS, open_regular, read_text
from ..api.writing import write_whole

_CHECKSUM = ".sha256"
_LONGEST = 1024


def is_kept(program: Path) -> bool:
    """Whether a program is there and is what was written; one that has no checksum, or another, is removed.

    A process killed while it wrote, a full disk or a foreign hand leave such files, and a runtime that reads programs
    does not look.
    """
    if not program.exists():
        return False
    if _is_verified(program):
        return True
    program.unlink(missing_ok=True)
    return False


def keep(program: Path, contents: bytes) -> None:
    """Write a program, its checksum first: who looks in between finds no program, and not one to remove."""
    write_whole(_noted(program), hashlib.sha256(contents).hexdigest().encode())
    write_whole(program, contents)


def _noted(program: Path) -> Path:
    return program.with_name(program.name + _CHECKSUM)


def _is_verified(program: Path) -> bool:
    noted = _noted(program)
    try:
        if read_text(noted, _LONGEST) == _digest(program):
            return True
    except ForeignFileError:
        pass  # none yet, or no checksum at all
    noted.unlink(missing_ok=True)
    return False


def _digest(path: Path) -> str:
    with open_regular(path, MAX_TENSORS) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Programs that a runtime keeps for itself: used again only if they are what was written."""

import hashlib
from pathlib import Path

from ..api.errors import ForeignFileError
from ..api.reading import MAX_TENSORS, open_regular, read_text

PROGRAMS = "*.blob"
_CHECKSUM = ".sha256"
_LONGEST = 1024


def drop_unverified(folder: Path) -> list[Path]:
    """Remove the programs in `folder` that have no checksum or another one; return what went.

    A process killed while it wrote, a full disk or a foreign hand leave such files, and a runtime that reads programs
    does not look.
    """
    gone = [path for path in folder.glob(PROGRAMS) if not _is_verified(path)]
    for path in gone:
        path.unlink(missing_ok=True)
    return gone


def record(folder: Path) -> None:
    """Write the checksum of each program that has none yet."""
    for path in folder.glob(PROGRAMS):
        noted = _noted(path)
        if not noted.exists():
            partial = noted.with_suffix(".partial")
            partial.write_text(_digest(path))
            partial.replace(noted)


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

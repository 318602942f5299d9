"""Files that appear whole or not at all, and logs that only grow.

What is being written lies beside its place under a name of its own (`PART`), locked by its writer, so that `sweep` can
tell what a killed process left from what a living one is about to finish. Nothing here is written through a link.
"""

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EISDIR
from pathlib import Path
from typing import BinaryIO

from .errors import RecordError

PART = re.compile(r"\.twig-[0-9a-f]{16}\.part")
"""Names of files that are being written."""

MAX_LINE = 2**26
"""Longest line of a log, in bytes."""

_ROOM = 2**23
"""Bytes for which there is room where files can be written: a record, its picture and what comes beside them."""

_PRIVATE, _PUBLIC = 0o600, 0o666


def write_whole(path: Path, data: bytes, private: bool = False) -> None:
    """Write `data` to `path` in full or not at all, taking the place of what was there.

    `private` files are their owner's alone. A link at `path` is replaced, and what it leads to stays as it is.
    """
    with _part(path.parent, data, private) as part:
        part.replace(path)


def write_new(path: Path, data: bytes, private: bool = False) -> None:
    """Write `data` to `path` in full or not at all; raises FileExistsError for anything that is there already."""
    with _part(path.parent, data, private) as part:
        os.link(part, path, follow_symlinks=False)


def check_folder(folder: Path) -> None:
    """Make `folder` and raise OSError unless files can be written into it, with room for some; leaves nothing there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        path, file = _begun(folder, private=True)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(bytes(_ROOM))
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:  # it would name the passing file
        raise OSError(error.errno, error.strerror, str(folder)) from error


@contextmanager
def folder_if_used(folder: Path) -> Iterator[None]:
    """Make `folder`, as `check_folder` does, and take away again what was made of it and nothing was written into."""
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        check_folder(folder)
        yield
    finally:
        with suppress(OSError):
            for each in made:
                each.rmdir()


def check_file(path: Path) -> None:
    """Raise OSError unless a file can be written at `path`; makes its folder, and leaves what is there as it is."""
    check_folder(path.parent)
    if path.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))


def sweep(folder: Path) -> None:
    """Remove what killed processes of this user left half written in `folder`; what is still being written stays."""
    for path in folder.iterdir():
        if PART.fullmatch(path.name):
            _remove_abandoned(path)


def append_line(path: Path, line: str) -> None:
    """Append `line` to a file that its owner alone can read, in one write, so that processes can share it.

    Raises RecordError for what `open_own` refuses.
    """
    data = line.encode() + b"\n"
    with open_own(path, create=True) as file:
        if not _ends_with_newline(file):  # a crash left half a line: keep it apart from this one
            data = b"\n" + data
        append(file, data, path)


@contextmanager
def open_own(path: Path, create: bool = False) -> Iterator[int]:
    """Yield a descriptor to read and append to the file at `path`, which becomes its owner's alone (mode 0600).

    Raises RecordError for a link, for what is no file (a FIFO, a device, a folder), for a file that has a second name
    or belongs to somebody else; OSError for one that cannot be opened. Never waits for a FIFO's other end.
    """
    flags = os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0)
    file = _opened(path, flags)
    try:
        found = os.fstat(file)
        _check_own(path, found)
        if found.st_nlink > 1:
            raise RecordError(f"{path} has {found.st_nlink} names (hard links); what is written would show elsewhere")
        os.fchmod(file, _PRIVATE)
        yield file
    finally:
        os.close(file)


def append(file: int, data: bytes, path: Path) -> None:
    """Add `data` to the end of an open log and wait until it is on the disk; add all of it or nothing."""
    size = os.fstat(file).st_size
    try:
        if os.write(file, data) != len(data):
            raise OSError(f"{path}: the line was cut short; is the disk full?")
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def read_own(path: Path, most: int) -> bytes:
    """Read a file of this user's that nobody else may read or write. Raises RecordError for any other."""
    file = _opened(path, os.O_RDONLY)
    try:
        found = os.fstat(file)
        _check_own(path, found)
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise RecordError(f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}); make it 0600")
        return os.read(file, most)
    finally:
        os.close(file)


def read_regular(path: Path, most: int) -> bytes:
    """Read a whole file of at most `most` bytes.

    Raises RecordError for a link, for what is no file, without waiting for it, or for more.
    """
    with _reading(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise RecordError(f"{path} has more than {most} bytes, which is the most that is read of such a file")
    return data


def read_log(path: Path) -> Iterator[bytes]:
    """Lines of a file of any length, without their newlines, the last also where it has none.

    Raises RecordError as `read_regular` does, and for a line longer than any that is written.
    """
    with _reading(path) as stream:
        while line := stream.readline(MAX_LINE + 1):
            check_line(path, line)
            yield line.removesuffix(b"\n")


def check_line(path: Path, line: bytes) -> None:
    """Raise RecordError for a line, or as much of it as was read, that is longer than any that is written."""
    if len(line) > MAX_LINE:
        raise RecordError(f"{path} holds a line of more than {MAX_LINE} bytes; nothing writes such a line")


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    file = _opened(path, os.O_RDONLY)
    try:
        _check_regular(path, os.fstat(file))
        with os.fdopen(file, "rb", closefd=False) as stream:
            yield stream
    finally:
        os.close(file)


@contextmanager
def held(folder: Path, *, alone: bool = False) -> Iterator[None]:
    """Hold `folder` while files in it belong together: beside others who write records, or `alone` to take them away.

    Waits for whoever holds it otherwise. Nothing is left behind, and what a killed process held is free.
    """
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(file)


def _opened(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, _PRIVATE)
    except OSError:
        if path.is_symlink():
            raise RecordError(f"{path} is a link, and links are not followed here; name the file itself") from None
        if path.exists() and not path.is_file():
            raise RecordError(f"{path} is not a regular file") from None
        raise


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise RecordError(f"{path} is not a regular file")


def _check_own(path: Path, found: os.stat_result) -> None:
    _check_regular(path, found)
    if found.st_uid != os.geteuid():
        raise RecordError(f"{path} belongs to user {found.st_uid}, this is user {os.geteuid()}; name a file of yours")


@contextmanager
def _part(folder: Path, data: bytes, private: bool) -> Iterator[Path]:
    """A finished file under a passing name, on the disk; where it went is on the disk too when the block ends."""
    path, file = _begun(folder, private)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(file)
            yield path
    finally:
        path.unlink(missing_ok=True)
    _sync(folder)


def _begun(folder: Path, private: bool) -> tuple[Path, int]:
    """A new file and its descriptor, locked, so that no sweep takes it for abandoned."""
    while True:
        path = folder / f".twig-{secrets.token_hex(8)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, _PRIVATE if private else _PUBLIC)
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:  # else a sweep came between opening and locking
            if private:
                os.fchmod(file, _PRIVATE)
            return path, file
        os.close(file)


def _remove_abandoned(path: Path) -> None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # finished meanwhile, a link, or another user's
        return
    try:
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        os.close(file)


def _sync(folder: Path) -> None:
    """Wait until the folder's list of names is on the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _ends_with_newline(file: int) -> bool:
    size = os.fstat(file).st_size
    return size == 0 or os.pread(file, 1, size - 1) == b"\n"

"""Results made by hand, a certificate and its key; what lies in wait in place of a file, and a clock on waiting."""

import importlib.util
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


def _fixtures(place: str) -> ModuleType:
    path = Path(__file__).parents[1] / place / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"fixtures_of_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_engine, _records = _fixtures("engine"), _fixtures("engine/records")
make_result, model, explanation = _engine.make_result, _engine.model, _engine.explanation
signing, place = _records.signing, _records.place

_SECONDS = 60

Trap = Callable[[Path], object]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, tempfile.TemporaryDirectory() as short:
        server.bind(f"{short}/socket")  # a socket's name has to be short; it may be moved
        Path(short, "socket").rename(path)


def _sparse(path: Path) -> None:
    """A file that claims a size no disk here has."""
    path.touch()
    os.truncate(path, 2**42)


TRAPS: dict[str, Trap] = {
    "pipe": lambda path: os.mkfifo(path),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": lambda path: path.mkdir(),
    "socket": _socket,
    "link to itself": lambda path: path.symlink_to(path),
    "link to a pipe": lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to(path.with_name("pipe"))),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "huge": _sparse,
}
"""What is no file to read."""

RUBBISH: dict[str, bytes] = {
    "empty": b"",
    "spaces": b" \n\t",
    "Latin-1": "caf\xe9".encode("latin-1"),
    "UTF-16": "refuse if ssim > 0.4".encode("utf-16"),
    "NUL": b"refuse if ssim > 0.4\0",
    "cut": b'{"version": "1',
    "a number": b"1",
    "nothing": b"null",
    "a list": b"[]",
    "a text": b'"text"',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep and torn": b'{"a":' * 100_000,
    "many digits": b'{"version": ' + b"9" * 400 + b"}",
    "more digits than Python takes": b'{"version": ' + b"9" * 5000 + b"}",
    "half a pair": b'{"version": "\\ud800"}',
    "half a name": b'{"\\udfff": 1}',
    "twice": b'{"version": 1, "version": 1}',
    "not a number": b'{"version": NaN}',
    "beyond a number": b'{"version": 1e999}',
    "pickle": b"\x80\x04.",
    "open quote": b'{"' + b'\\"' * 100_000,
}
"""Contents that are no JSON object of ours, and most of them no text."""


@pytest.fixture(autouse=True)
def impatient(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that waits for a pipe or reads a device; one that is long itself has a `timeout` of its own."""
    own = request.node.get_closest_marker("timeout")
    seconds = _SECONDS if own is None else own.args[0]

    def ring(*_: object) -> None:
        raise AssertionError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=TRAPS)
def trap(request: pytest.FixtureRequest) -> Trap:
    """Return what sets one of `TRAPS` at a path."""
    return TRAPS[request.param]


@pytest.fixture(params=RUBBISH)
def rubbish(request: pytest.FixtureRequest) -> bytes:
    """Return one of `RUBBISH`."""
    return RUBBISH[request.param]

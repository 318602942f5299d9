import os
import stat
from pathlib import Path

import pytest

from twig.engine.api.files import append_line, write_whole


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_replaces_what_was_there(tmp_path):
    path = tmp_path / "a.png"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_whole(path, b"first")

    def full_disk(_descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.png"]


def test_private_files_are_their_owners_alone(tmp_path):
    old = os.umask(0o022)
    try:
        write_whole(tmp_path / "public", b"", private=False)
        write_whole(tmp_path / "private", b"", private=True)
        append_line(tmp_path / "log", "line")
    finally:
        os.umask(old)
    assert [mode(tmp_path / name) for name in ("public", "private", "log")] == [0o644, 0o600, 0o600]


def test_a_log_grows_and_closes_to_others_even_if_it_was_open(tmp_path):
    path = tmp_path / "log"
    path.write_text("first\n")
    path.chmod(0o644)
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"
    assert mode(path) == 0o600


def test_a_line_after_a_torn_one_stands_alone(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"torn": ')
    append_line(path, "whole")
    assert path.read_text().splitlines() == ['{"torn": ', "whole"]

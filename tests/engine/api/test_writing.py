import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from twig.engine.api.errors import RecordError
from twig.engine.api.writing import (
    PART,
    append_line,
    check_folder,
    read_own,
    read_regular,
    sweep,
    write_new,
    write_whole,
)


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


def test_a_new_file_takes_nobodys_place(tmp_path):
    path = tmp_path / "a.json"
    write_new(path, b"first", private=True)
    with pytest.raises(FileExistsError):
        write_new(path, b"second")
    assert path.read_bytes() == b"first"
    assert path.stat().st_nlink == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_nothing_is_written_through_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    with pytest.raises(FileExistsError):
        write_new(link, b"new")
    with pytest.raises(RecordError, match="is a link"):
        append_line(link, "line")
    write_whole(link, b"new")
    assert target.read_text() == "precious"
    assert not link.is_symlink()


def second_name(path):
    path.with_name("other").write_text("precious")
    path.hardlink_to(path.with_name("other"))


STRANGE = {
    "a link to nothing": (lambda path: path.symlink_to(path.with_name("nothing")), "is a link"),
    "a FIFO": (os.mkfifo, "not a regular file"),
    "a folder": (Path.mkdir, "not a regular file"),
    "a second name": (second_name, "2 names"),
}


@pytest.mark.parametrize(("make", "message"), STRANGE.values(), ids=STRANGE)
def test_a_log_that_is_no_file_of_its_own_is_refused_at_once(tmp_path, make, message):
    path = tmp_path / "log"
    make(path)
    with pytest.raises(RecordError, match=message):
        append_line(path, "line")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file somebody else's")
def test_a_log_of_somebody_elses_is_refused(tmp_path):
    path = tmp_path / "log"
    path.touch()
    os.chown(path, 12345, -1)
    with pytest.raises(RecordError, match="belongs to user 12345"):
        append_line(path, "line")


def test_a_private_file_that_others_can_read_is_refused(tmp_path):
    write_whole(tmp_path / "key", b"secret", private=True)
    assert read_own(tmp_path / "key", 64) == b"secret"
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(RecordError, match="mode 0640"):
        read_own(tmp_path / "key", 64)


def test_reading_does_not_wait_for_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RecordError, match="not a regular file"):
        read_regular(tmp_path / "fifo", 64)


def test_a_folder_is_checked_and_left_empty(tmp_path):
    check_folder(tmp_path / "a/b")
    assert os.listdir(tmp_path / "a/b") == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        check_folder(tmp_path / "file")


WRITER = """
import os, sys, pathlib
from twig.engine.api import writing
def wait(_file):
    print("writing", flush=True)
    sys.stdin.read()
os.fsync = wait
writing.write_whole(pathlib.Path(sys.argv[1]), b"data")
"""


def test_a_sweep_takes_what_a_killed_writer_left_and_nothing_else(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a.png")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        (tmp_path / ".twig-cafe.part").touch()
        (part,) = [name for name in os.listdir(tmp_path) if PART.fullmatch(name)]
        sweep(tmp_path)
        assert part in os.listdir(tmp_path), "its writer lives"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert part in os.listdir(tmp_path)
    (tmp_path / ".twig-0123456789abcdef.part").symlink_to(tmp_path / ".twig-cafe.part")
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".twig-0123456789abcdef.part", ".twig-cafe.part"]

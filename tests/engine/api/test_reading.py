import json
import os

import pytest
from pydantic import BaseModel

from twig.engine.api.errors import CheckpointError, ForeignFileError, InvalidRequestError
from twig.engine.api.reading import (
    MAX_DEPTH,
    open_regular,
    read_bytes,
    read_json,
    read_lines,
    read_model,
    read_object,
    read_text,
    reading,
    shown,
)


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a file."""

    def write(content):
        path = tmp_path / "file"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_link_to_a_regular_file_is_read(file, tmp_path):
    (tmp_path / "link").symlink_to(file("text"))
    assert read_text(tmp_path / "link") == "text"


def test_a_byte_order_mark_is_no_text(file):
    assert read_text(file(b"\xef\xbb\xbfa star\r\n")) == "a star\r\n"
    assert read_json(file(b'\xef\xbb\xbf{"a": 1}')) == {"a": 1}


def test_lines_come_without_space_and_empty_ones(file):
    assert read_lines(file("a star\n\n  the moon \r\n\t\n")) == ["a star", "the moon"]


def test_a_file_is_read_to_its_cap_and_no_further(file):
    assert read_bytes(file(b"12345"), 5) == b"12345"
    with pytest.raises(ForeignFileError, match=r"file: 6 bytes; at most 5"):
        read_bytes(file(b"123456"), 5)
    with pytest.raises(ForeignFileError, match="more than 5 bytes"):
        read_bytes("/proc/self/status", 5)  # a file that does not say its size


def test_a_pipe_that_takes_a_files_place_is_not_waited_for(file, monkeypatch, tmp_path):
    regular, stat = file("text"), os.stat
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "stat", lambda path: stat(regular))
    with pytest.raises(ForeignFileError, match="a pipe; give a regular file"):
        open_regular(tmp_path / "pipe", 100)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", r"no UTF-8 text: byte 0xe9 at 3; save it as UTF-8"),
        (b"a\0b", "no text: a NUL character at 1"),
    ],
)
def test_what_is_no_text_is_said_where(file, content, message):
    with pytest.raises(ForeignFileError, match=message):
        read_text(file(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("{", "not valid JSON"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} deep"),
        ("[" * 10**6, f"more than {MAX_DEPTH} deep"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        (f"[{'1' * 101}]", "a number of 101 digits"),
        ("[1e400]", "1e400 is beyond the range of a number"),
        ("[-Infinity]", "-Infinity is no finite number"),
        (r'["\ud834"]', "half of a surrogate pair"),
    ],
)
def test_json_that_would_hurt_later_is_refused(file, content, message):
    with pytest.raises(ForeignFileError, match=message):
        read_json(file(content))


def test_json_that_only_looks_dangerous_is_read(file):
    value = {"deep": "[" * 1000 + '"' + "\\", "digits": 10**99, "pair": "\U0001d11e", "twice": [{"a": 1}, {"a": 2}]}
    assert read_json(file(json.dumps(value))) == value
    nested = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert read_json(file(nested)) == json.loads(nested)


def test_constants_are_read_where_their_field_is_named_later(file):
    assert read_object(file('{"a": -Infinity, "b": 1e400}'), constants=True) == {"a": -float("inf"), "b": float("inf")}


def test_another_value_than_an_object_is_refused(file):
    with pytest.raises(ForeignFileError, match="holds a list, not a JSON object"):
        read_object(file("[]"))


class Point(BaseModel):
    """A schema."""

    x: int


def test_a_schema_names_the_first_field_that_is_wrong_with_its_value(file):
    assert read_model(file('{"x": 1}'), Point) == Point(x=1)
    with pytest.raises(ForeignFileError, match=r"file: x: .*valid integer.*, got 'many'"):
        read_model(file('{"x": "many"}'), Point)


def test_its_error_is_a_requests_and_a_models(file):
    with pytest.raises(InvalidRequestError):
        read_json(file(""))
    with pytest.raises(CheckpointError):
        read_json(file(""))


def test_what_is_wrong_of_a_file_is_said_once_with_its_kind(file):
    path = file("")
    with pytest.raises(ForeignFileError) as error, reading(path, "no calibration"):
        read_json(path)
    assert str(error.value) == f"{path} is no calibration: not valid JSON: the file is empty"


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2Jb", "\udcff", "\u202egnp", "\r"])
def test_a_name_or_content_cannot_move_the_cursor(tmp_path, name):
    with pytest.raises(ForeignFileError) as error:
        read_text(tmp_path / name)
    message = str(error.value)
    assert message.isprintable()
    assert message.encode()
    assert "no such file" in message


def test_text_that_is_printable_is_shown_as_it_is():
    assert shown("ein Stern, 星") == "ein Stern, 星"
    assert shown("x" * 300) == "x" * 200 + "..."
    assert shown("a\nverdict  accepted\x1b[0m") == "a\\nverdict  accepted\\x1b[0m"


def test_a_path_that_is_none_is_said_to_be(tmp_path):
    with pytest.raises(ForeignFileError, match="no name of a file"):
        read_text(tmp_path / "a\0b")
    with pytest.raises(ForeignFileError, match="cannot be read: File name too long"):
        read_text(tmp_path / ("x" * 5000))

import io
import sys

import pytest

from twig.engine.api.errors import InvalidRequestError
from twig.engine.cli.asking import MOST_REQUESTS, check_number, gathered_prompts, interval_of, seeds_of


@pytest.fixture
def stdin(monkeypatch):
    """Return a function that gives stdin its bytes."""
    return lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("7", [7]),
        ("1..4", [1, 2, 3, 4]),
        ("1-3,12", [1, 2, 3, 12]),
        ("3, 1 .. 3", [3, 1, 2]),
        (f"{2**63 - 1}", [2**63 - 1]),
    ],
)
def test_seeds_are_numbers_and_ranges_each_once(text, seeds):
    assert seeds_of(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "takes numbers and ranges"),
        ("few", "got 'few'"),
        ("1..", "got '1..'"),
        ("-1", "got '-1'"),
        ("8..1", "runs backwards; write 1..8"),
        (f"{2**63}", "at most"),
        ("0..99999999999", "99999999999 is 100000000000 seeds, more than 4096"),
    ],
)
def test_other_seeds_are_refused_by_value(text, message):
    with pytest.raises(InvalidRequestError, match=message):
        seeds_of(text)


def test_prompts_are_the_lines_of_a_file_without_blank_ones(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red star\r\n\n  a blue house \n".encode())
    assert gathered_prompts([], str(file)) == ["a red star", "a blue house"]
    assert gathered_prompts(["a moon"], str(file)) == ["a moon", "a red star", "a blue house"]


def test_a_dash_is_stdin_in_either_place(stdin):
    stdin(b"a red star\n")
    assert gathered_prompts([], "-") == ["a red star"]
    stdin(b"a blue house\n")
    assert gathered_prompts(["a moon", "-"], None) == ["a moon", "a blue house"]


def test_what_holds_no_prompts_is_refused(tmp_path, stdin):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b" \n\n")
    with pytest.raises(InvalidRequestError, match=r"prompts\.txt holds no prompts; write one a line"):
        gathered_prompts([], str(file))
    file.write_bytes(b"a red \xff star")
    with pytest.raises(InvalidRequestError, match=r"prompts\.txt: no UTF-8 text: byte 0xff at 6"):
        gathered_prompts([], str(file))
    with pytest.raises(InvalidRequestError, match="nothing to draw"):
        gathered_prompts([], None)
    with pytest.raises(InvalidRequestError, match="read once"):
        gathered_prompts(["-"], "-")
    with pytest.raises(InvalidRequestError, match=r"none\.txt: no such file"):
        gathered_prompts([], str(tmp_path / "none.txt"))


def test_requests_of_one_command_are_bounded():
    check_number(["a"] * 64, range(64))
    with pytest.raises(InvalidRequestError, match=f"are 4160 requests, more than {MOST_REQUESTS}"):
        check_number(["a"] * 65, range(64))


def test_an_interval_of_guidance_is_two_fractions():
    assert interval_of(None) == {}
    assert interval_of("0.1:0.8") == {"guidance_start": 0.1, "guidance_stop": 0.8}


@pytest.mark.parametrize("text", ["0.5", "a:b", "", "0.1:0.2:0.3"])
def test_what_is_no_interval_is_refused(text):
    with pytest.raises(InvalidRequestError, match="--guidance-interval takes START:STOP"):
        interval_of(text)

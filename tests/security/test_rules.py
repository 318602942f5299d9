"""Rules written by anybody: read, or refused in one line that names the clause, in time linear in their length."""

import random
import time

import pytest

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.metrics import ALL_METRICS
from twig.engine.api.rules import MAX_NESTING, Rule
from twig.engine.cli.main import USER_ERROR, run

pytestmark = pytest.mark.slow

DIRECTIONS = {name: metric.direction for name, metric in ALL_METRICS.items()}
PIECES = [
    "refuse", "review", "if", "retry", "then", "accept", "everything", "any", "calibrated", "limit", "is", "crossed",
    "crosses", "its", "ssim", "tile_l2", "phash", "nothing", "(", ")", "or", "and", "<", ">", "<=", ">=", "=", "0.4",
    "1e400", "-1", "nan", "inf", ".5", "9" * 400, "\u0664", ";", "\n", "#", "\0", "\ud800", "\x1b[2J", "\u202e", "é",
    "x" * 300,
]  # fmt: skip


def read(text):
    """Read and check a rule; return the message that refuses it, or "" and see that it reads back as it was."""
    try:
        rule = Rule.parse(text)
        rule.check(DIRECTIONS)
    except InvalidRequestError as error:
        return str(error)
    assert Rule.parse(str(rule)) == rule
    return ""


def test_random_rules_are_read_or_refused_in_one_short_line():
    chance = random.Random(0)
    outcomes = []
    for _ in range(20_000):
        message = read(" ".join(chance.choices(PIECES, k=chance.randrange(1, 12))))
        outcomes.append(message)
        assert message.isprintable()
        assert len(message) < 1500
    assert any(outcomes)


def test_parentheses_nest_as_deeply_as_is_said_and_no_deeper():
    assert read("refuse if " + "(" * MAX_NESTING + "ssim > 0.4" + ")" * MAX_NESTING) == ""
    for depth in (MAX_NESTING + 1, 1000, 100_000):
        assert f"more than {MAX_NESTING} deep" in read("refuse if " + "(" * depth + "ssim > 0.4" + ")" * depth)
    beside = " or ".join(["(ssim > 0.4 and tile_l2 < 0.1)"] * 1000)
    assert read(f"refuse if {beside}") == ""


@pytest.mark.parametrize(
    "piece",
    [
        "refuse if ssim > 0.4\n", "refuse if ssim > 0.4 or ", "((", "# comment ", "refuse if " + " " * 100, "retry 1 ",
        "ssim", "9", "-", ";", "\u00e9 ",
    ],
)  # fmt: skip
def test_a_long_rule_takes_no_longer_than_its_length(piece):
    began = time.process_time()
    read((piece * (360_000 // len(piece))).removesuffix(" or "))
    assert time.process_time() - began < 10


@pytest.mark.parametrize("count", ["9" * 400, "1" * 5000, "\u0664", "\u00b2", "17", "-1", "1.5", "1e1"])
def test_a_number_of_retries_is_small_and_in_plain_digits(count):
    assert "expected a number of retries from 0 to 16" in read(f"refuse if ssim > 0.4; retry {count}")


@pytest.mark.parametrize("limit", ["9" * 400, "1e400", "-1e400", "nan", "inf", "0x1", "1_000"])
def test_a_threshold_is_a_finite_number(limit):
    assert read(f"refuse if ssim > {limit}")


def test_a_command_refuses_a_rule_in_a_line(tmp_path, capsys):
    (tmp_path / "rule").write_text("refuse if " + "(" * 1000)
    assert run(["generate", "star", "--rule", f"@{tmp_path / 'rule'}"]) == USER_ERROR
    assert len(capsys.readouterr().err.splitlines()) == 1

"""Programs for sizes of calls: run in others until they are there, made ahead of need, and kept under a budget."""

import threading

import pytest

from compiling import finish
from twig.engine.backends.programs import Due, Programs
from twig.engine.models.tensors import Sizes

NBYTES = 10


class Workshop:
    """Makes programs that are texts, and remembers the order."""

    def __init__(self, gate=None):
        self.made = []
        self.gate, self.begun = gate, threading.Event()

    def due(self, rows, side=16, network="unet"):
        def make():
            if self.gate is not None and threading.current_thread() is not threading.main_thread():
                self.begun.set()
                assert self.gate.wait(300)
            if rows == 13:
                raise RuntimeError("unlucky")
            self.made.append((network, rows, side))
            return f"{network} {rows}", NBYTES

        return Due(network, Sizes(rows, side, side), make)

    def rows(self, programs, rows, **where):
        return [count for _, count in programs.running(self.due(rows, **where), rows)]


def test_what_is_missing_is_made_where_nothing_else_is_asked_for():
    shop, programs = Workshop(), Programs()
    assert [shop.rows(programs, rows) for rows in (2, 16, 2)] == [[2], [16], [2]]
    assert shop.made == [("unet", 2, 16), ("unet", 16, 16)]
    assert programs.nbytes == 2 * NBYTES


def test_a_call_is_run_in_what_there_is_while_its_own_is_on_its_way():
    gate = threading.Event()
    shop, programs = Workshop(gate), Programs()
    shop.rows(programs, 2)
    programs.prepare([shop.due(4), shop.due(8), shop.due(16)])
    assert shop.begun.wait(300)
    assert shop.rows(programs, 16) == [2] * 8
    gate.set()
    finish(programs)
    assert shop.rows(programs, 16) == [16]
    assert [rows for _, rows, _ in shop.made] == [2, 4, 16, 8], "what was asked for was not the next"


def test_where_nothing_is_there_for_a_size_of_pictures_its_own_is_waited_for():
    gate = threading.Event()
    shop, programs = Workshop(gate), Programs()
    shop.rows(programs, 2)
    programs.prepare([shop.due(4), shop.due(8, network="controlnet")])
    assert shop.rows(programs, 8, network="controlnet") == [8]
    assert shop.rows(programs, 2, side=32, network="vae_decoder") == [2]
    gate.set()
    finish(programs)


def test_what_could_not_be_compiled_ahead_is_told_and_its_calls_go_on(caplog):
    shop, programs = Workshop(), Programs()
    shop.rows(programs, 2)
    programs.prepare([shop.due(13), shop.due(4)])
    finish(programs)
    assert programs.report()["failed"] == {"unet 13x16x16": "RuntimeError: unlucky"}
    assert "unet 13x16x16 could not be compiled ahead" in caplog.text
    assert sum(shop.rows(programs, 13)) >= 13
    assert shop.rows(programs, 4) == [4]


def test_what_fails_when_it_is_waited_for_fails_its_caller():
    with pytest.raises(RuntimeError, match="unlucky"):
        Workshop().rows(Programs(), 13)


def test_stopped_it_begins_nothing_more():
    gate = threading.Event()
    shop, programs = Workshop(gate), Programs()
    shop.rows(programs, 2)
    programs.prepare([shop.due(4), shop.due(8)])
    assert shop.begun.wait(300)
    programs.stop()
    assert shop.rows(programs, 8) == [2, 2, 2, 2], "what runs yet must not wait for a program"
    programs.prepare([shop.due(16)])
    gate.set()
    finish(programs)
    assert [rows for _, rows, _ in shop.made] == [2, 4]


def test_what_does_not_fit_the_budget_is_run_in_other_sizes():
    shop, programs = Workshop(), Programs(budget=2 * NBYTES)
    shop.rows(programs, 2)
    programs.prepare([shop.due(8), shop.due(4), shop.due(16)])
    finish(programs)
    assert [shop.rows(programs, rows) for rows in (2, 8, 4, 16)] == [[2], [8], [2, 2], [8, 8]]
    assert programs.nbytes == 2 * NBYTES


def test_another_size_of_pictures_takes_the_place_of_what_was_used_least_recently():
    shop, programs = Workshop(), Programs(budget=2 * NBYTES)
    for rows in (2, 8, 2):
        shop.rows(programs, rows)
    assert shop.rows(programs, 2, side=32) == [2]
    assert programs.held == [("unet", Sizes(2, 16, 16)), ("unet", Sizes(2, 32, 32))]


def test_a_size_that_comes_again_and_again_takes_the_place_of_one_that_does_not():
    shop, programs = Workshop(), Programs(budget=2 * NBYTES)
    for rows in (2, 8):
        shop.rows(programs, rows)
    calls = [tuple(shop.rows(programs, 6)) for _ in range(100)]
    assert list(dict.fromkeys(calls)) == [(8,), (6,)]
    assert programs.held == [("unet", Sizes(8, 16, 16)), ("unet", Sizes(6, 16, 16))]


def test_a_single_program_is_made_whatever_it_takes():
    shop, programs = Workshop(), Programs(budget=NBYTES - 1)
    assert shop.rows(programs, 8) == [8]
    assert shop.rows(programs, 16) == [8, 8]
    assert shop.rows(programs, 2, side=32) == [2]
    assert programs.held == [("unet", Sizes(2, 32, 32))]

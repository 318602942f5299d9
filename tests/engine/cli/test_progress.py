import io

import pytest
from rich.console import Console

from twig.engine.api.event import Event, State
from twig.engine.api.request import GenerationRequest
from twig.engine.api.settings import Stage
from twig.engine.cli.progress import PERIOD, Heartbeat, StageBars


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def text(console):
    return console.file.getvalue()


def test_a_bar_for_each_stage_follows_the_events(console, make_result):
    request = GenerationRequest(prompt="a", draft=Stage(steps=2), final=Stage(steps=3), num_images=2)
    with StageBars([request], console) as bars:
        for step in (0, 1, 2):
            bars.show(Event(0, 0, State.DRAFTING, step, 2))
        bars.show(Event(0, 0, State.SEGMENTED))
        for index in (0, 1):
            for step in (0, 1, 2, 3):
                bars.show(Event(0, index, State.FINALISING, step, 3))
            bars.show(Event(0, index, State.ACCEPTED, result=make_result()))
    for name, count in (("draft", "2/2"), ("segment", "1/1"), ("final", "6/6"), ("judge", "2/2")):
        assert count in [line for line in text(console).splitlines() if name in line][-1]


def test_a_retry_lengthens_the_final_bar(console):
    request = GenerationRequest(prompt="a", final=Stage(steps=3))
    with StageBars([request], console) as bars:
        bars.show(Event(0, 0, State.FINALISING, 0, 3, attempt=1))
        bars.show(Event(0, 0, State.FINALISING, 1, 3, attempt=1))
    assert "1/6" in text(console)


def test_another_draft_lengthens_the_draft_bar(console):
    request = GenerationRequest(prompt="a", draft=Stage(steps=2), final=Stage(steps=3), redraft=6)
    with StageBars([request], console) as bars:
        bars.show(Event(0, 0, State.DRAFTING, 1, 2))
        bars.show(Event(0, 0, State.DRAFTING, 0, 6, attempt=1))
        bars.show(Event(0, 0, State.DRAFTING, 1, 6, attempt=1))
    assert "2/8" in text(console)
    assert "0/2" in [line for line in text(console).splitlines() if "segment" in line][-1]


def test_a_heartbeat_says_now_and_then_how_far_it_is(make_result):
    console, now = Console(file=io.StringIO()), [0.0]
    beat = Heartbeat(console, drafts=2, images=4, rate=lambda: 41.26, clock=lambda: now[0])
    beat.hear(Event(0, 0, State.SEGMENTED))
    beat.hear(Event(0, 0, State.ACCEPTED, result=make_result()))
    assert text(console) == "", "not before it is time"
    now[0] = PERIOD
    beat.hear(Event(0, 0, State.FINALISING, 1, 3))
    beat.hear(Event(0, 0, State.FINALISING, 2, 3))
    assert text(console) == "twig: drafts 1 of 2, finals 1 of 4, 41.3 rows/s, 30 s\n"


@pytest.mark.parametrize(("quiet", "terminal", "lines"), [(False, False, 1), (True, False, 0), (False, True, 0)])
def test_a_heartbeat_is_for_who_sees_no_bars_and_wants_to_hear(monkeypatch, quiet, terminal, lines):
    monkeypatch.setattr("twig.engine.cli.progress.PERIOD", 0.0)
    console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None)
    with StageBars([GenerationRequest(prompt="a")], console, lambda: 1.0, quiet=quiet) as bars:
        bars.show(Event(0, 0, State.DRAFTING, 1, 20))
    assert text(console).count("twig: drafts 0 of 1") == lines
    assert (text(console) == "") is (quiet or (not terminal and not lines))


def test_nothing_is_drawn_into_a_file():
    console = Console(file=io.StringIO())
    with StageBars([GenerationRequest(prompt="a")], console) as bars:
        bars.show(Event(0, 0, State.DRAFTING, 1, 20))
    assert text(console) == ""

import io

import pytest
from rich.console import Console

from twig.engine.api.event import Event, State
from twig.engine.api.request import GenerationRequest
from twig.engine.api.settings import Stage
from twig.engine.cli.progress import StageBars


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


def test_nothing_is_drawn_into_a_file():
    console = Console(file=io.StringIO())
    with StageBars([GenerationRequest(prompt="a")], console) as bars:
        bars.show(Event(0, 0, State.DRAFTING, 1, 20))
    assert text(console) == ""

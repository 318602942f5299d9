"""What a key gets back of the rows that were taken for a request."""

import openai
import pytest

from servers import running, wait_for
from twig.engine.api.event import Event, State
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import GenerationResult, Verdict
from twig.engine.api.settings import Stage
from twig.engine.serve.keys import Keys
from twig.engine.serve.spending import Spending

PROMPT = "a red star"
MINUTE = 400
STEPS = 20
COST = 2 * 2 * STEPS  # draft and final, guided


@pytest.fixture(scope="module")
def spending(served_engine):
    """Return a function that follows a request of two images, drafts of 4 and finals of 5 guided steps."""

    def follow(*events, kept=True):
        request = GenerationRequest(prompt=PROMPT, draft=Stage(steps=4), final=Stage(steps=5), num_images=2, gate=None)
        admitted = served_engine.admit(request)
        followed = Spending(admitted, served_engine.estimate(admitted))
        for event in events:
            followed.hear(event)
        if not kept:
            followed.forgive()
        return followed.unspent

    return follow


def ended(index, state):
    result = GenerationResult(GenerationRequest(prompt=PROMPT), index, Verdict(state))
    return Event(0, index, state, result=result)


def test_steps_that_were_taken_are_spent(spending):
    whole = spending()
    assert spending(Event(0, 0, State.QUEUED), Event(0, 0, State.ENCODED)) == whole
    assert spending(Event(0, 0, State.DRAFTING, 3, 4)) == whole - 6
    finals = spending(Event(0, 0, State.SEGMENTED))
    assert finals == spending(Event(0, 0, State.SEGMENTED), Event(0, 1, State.PLACING)) <= whole - 8
    assert spending(Event(0, 0, State.FINALISING, 2, 5)) == finals - (finals / 2 - 6)
    assert spending(Event(0, 0, State.FINALISING, 2, 5), Event(0, 1, State.JUDGING)) == 6


def test_a_second_attempt_was_never_paid_and_gives_nothing_back(spending):
    assert spending(*(Event(0, index, State.FINALISING, 1, 5, attempt=1) for index in range(2))) == 0


def test_what_expires_is_given_back_and_what_the_server_stops_is_not(spending):
    drafting = Event(0, 0, State.DRAFTING, 3, 4)
    assert spending(drafting, ended(0, State.EXPIRED)) == spending(drafting)
    assert spending(drafting, ended(0, State.CANCELLED)) == 0


def test_what_the_server_could_not_keep_is_given_back_whole(spending):
    judged = [Event(0, index, State.JUDGING) for index in range(2)]
    assert spending(*judged) == 0
    assert spending(*judged, kept=False) == spending(ended(0, State.CANCELLED), kept=False) == spending()


@pytest.fixture(scope="module")
def paid(served_engine, plain_config, tmp_path_factory):
    """A server, and a client whose allowance is not refilled."""
    folder = tmp_path_factory.mktemp("paid")
    keys = Keys(folder / "keys.json")
    key = keys.add("ann", rows_per_minute=MINUTE)
    config = plain_config.with_("listen", keys=keys.path).with_("records", folder=folder)
    config = config.with_("drawing", preset="off").with_("jobs", running=1, each=2)
    with running(served_engine, config) as server:
        tenants, id = server.service.first.runner.admission.tenants, keys.find(key).id
        tenants.clock = lambda: 0.0  # no minute passes
        yield server.client(key), lambda: tenants.allowance(id)


def test_who_leaves_pays_for_what_was_drawn(paid, served_engine):
    client, left = paid
    before = served_engine.stats().rows
    options = {"twig": {"steps": STEPS}}
    events = client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=options)
    next(events)
    assert left() == MINUTE - COST
    events.close()
    wait_for(lambda: not served_engine.pending and left() > MINUTE - COST)
    drawn = served_engine.stats().rows - before
    assert drawn - 4 <= MINUTE - left() <= drawn, "but for a step that was on its way"


def test_jobs_that_are_called_off_are_given_back_and_few_of_one_key_wait(paid, served_engine):
    client, left = paid
    began, before = left(), served_engine.stats().rows

    def ask():
        body = {"twig": {"background": True, "steps": STEPS}}
        return client.images.generate(prompt=PROMPT, extra_body=body).model_extra["id"]

    first = ask()
    wait_for(lambda: served_engine.pending)
    waiting = [ask(), ask()]
    assert left() == began - 3 * COST
    with pytest.raises(openai.RateLimitError, match="2 jobs of this key are waiting already") as caught:
        ask()
    assert (caught.value.code, left()) == ("too_many_jobs", began - 3 * COST)
    for id in (*waiting, first):
        client.delete(f"/twig/jobs/{id}", cast_to=object)
    wait_for(lambda: not served_engine.pending and left() > began - COST)
    assert began - left() <= served_engine.stats().rows - before

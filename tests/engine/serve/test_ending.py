"""A server that is asked to end: what runs then, what comes then, and what a second and a third signal do."""

import asyncio
import signal
import threading

import httpx2
import pytest

from servers import running, wait_for
from twig.engine.serve.jobs.desk import Desk
from twig.engine.serve.jobs.store import Status
from twig.engine.serve.listening import Listener

LONG = {"prompt": "a red star", "twig": {"steps": 10}}


def test_a_stream_an_upload_and_a_job_under_two_signals_are_finished_or_told_so(served_engine, plain_config, tmp_path):
    config = plain_config.with_("records", folder=tmp_path).with_("drain", grace=60, deadline=60)
    told, halfway = {}, threading.Event()

    def stream():
        with httpx2.stream("POST", address, json=LONG | {"stream": True}, timeout=60) as answer:
            told["stream"] = answer.read().decode()

    def upload():
        def halves():
            yield b'{"prompt": '
            halfway.wait()
            yield b'"a moon"}'

        headers = {"content-type": "application/json"}
        answer = httpx2.post(address, content=halves(), headers=headers, timeout=60)
        told["upload"] = answer.status_code, answer.headers["x-should-retry"]

    with running(served_engine, config) as served:
        address = f"{served.url}/v1/images/generations"
        asking = [threading.Thread(target=each) for each in (stream, upload)]
        for each in asking:
            each.start()
        wait_for(lambda: len(served.server.server_state.tasks) == 2 and served_engine.pending)
        job = httpx2.post(address, json={"prompt": "a moon", "twig": {"background": True, "seed": 3}}).json()["id"]
        loop = served.server.servers[0].get_loop()
        loop.call_soon_threadsafe(served.server.handle_exit, signal.SIGTERM, None)
        wait_for(lambda: httpx2.get(f"{served.url}/readyz").status_code == 503)
        loop.call_soon_threadsafe(served.server.handle_exit, signal.SIGTERM, None)
        wait_for(lambda: not served.service.alive)
        halfway.set()
        for each in asking:
            each.join()
    assert "image_generation.completed" in told["stream"]
    assert told["upload"] == (503, "true")
    assert Desk(config.jobs, tmp_path).store.find(job).status in (Status.QUEUED, Status.DONE), "it is not lost"


class Asked(Listener):
    """A listener that was not started, which is asked to stop."""

    def __init__(self) -> None:
        self.served, self.grace = self, 0.0
        self.draining = self.should_exit = self.force_exit = False

    async def hear(self, *signals) -> tuple[bool, bool]:
        """Whether it ends, and whether without waiting, after these signals and the grace."""
        for sent in signals:
            self.handle_exit(sent, None)
        for _ in range(50):
            await asyncio.sleep(0)
        return self.should_exit, self.force_exit


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_grace_and_a_third_the_waiting(second):
    assert asyncio.run(Asked().hear(signal.SIGTERM)) == (True, False)
    assert asyncio.run(Asked().hear(signal.SIGTERM, second)) == (True, False)
    assert asyncio.run(Asked().hear(signal.SIGTERM, second, second)) == (True, True)
    assert asyncio.run(Asked().hear(signal.SIGINT)) == (True, False)

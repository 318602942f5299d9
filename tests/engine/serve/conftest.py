"""A real server on loopback, made once for all tests of it, and the real client that talks to it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest

from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.serve.app import application
from twig.engine.serve.config import ServeConfig
from twig.engine.serve.server import Server

STEPS = 1


@contextmanager
def running(engine: Engine, config: ServeConfig) -> Iterator["Running"]:
    """Serve `engine` in a thread, on a port that is free."""
    server = Server(application(engine, config.with_("listen", port=0)), config.with_("listen", port=0))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not (server.started and server.service.warm):
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield Running(server)
    finally:
        server.stop()
        thread.join()


class Running:
    """A server that runs, and its address."""

    def __init__(self, server: Server) -> None:
        self.server, self.service = server, server.service
        (listener,) = server.servers
        self.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    def client(self, key: str = "none") -> "openai.OpenAI":
        """A client that never tries again."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def served_engine(tiny_checkpoint) -> Engine:
    """A tiny model, for every server of these tests."""
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=8, rows=8))


@pytest.fixture(scope="session")
def plain_config(tmp_path_factory) -> ServeConfig:
    """Two steps, nothing refused, and no waiting at the end."""
    folder = tmp_path_factory.mktemp("served")
    return ServeConfig(
        model={"aliases": ["gpt-image-1"]},
        drawing={"steps": STEPS, "rule": "refuse if ssim > 1", "preset": "gentle"},
        records={"folder": folder},
        drain={"grace": 0, "deadline": 5},
    )


@pytest.fixture(scope="session")
def served(served_engine, plain_config) -> Iterator[Running]:
    """The server that most tests share."""
    with running(served_engine, plain_config) as server:
        yield server


@pytest.fixture(scope="session")
def client(served):
    """Its client."""
    return served.client()

"""Real servers in a thread of the test's own process, and the real client of the OpenAI API."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import openai

from twig.engine.engine import Engine
from twig.engine.serve.app import application
from twig.engine.serve.config import ServeConfig
from twig.engine.serve.server import Server


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


def wait_for(done, seconds=20):
    """Look again until it is done."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)

"""Real servers in a thread of the test's own process, and the real client of the OpenAI API."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai

from twig.engine.engine import Engine
from twig.engine.serve.app import application
from twig.engine.serve.config import ServeConfig
from twig.engine.serve.server import Server


@contextmanager
def running(engine: Engine, config: ServeConfig, *further: Engine) -> Iterator["Running"]:
    """Serve `engine`, and those of further models, in a thread, on a port that is free."""
    config = config.with_("listen", port=0)
    server = Server(application([engine, *further], config), config)
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


@contextmanager
def process(config: Path, *words: str) -> Iterator["Process"]:
    """`twig serve` as a process of its own, ready; killed where it still runs in the end."""
    command = [sys.executable, "-P", "-m", "twig", "serve", "--config", str(config), "--port", "0", *words]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield Process(started)
    finally:
        started.kill()
        started.communicate()


class Process:
    """A server in a process of its own. log: the lines that it wrote, parsed, which grows meanwhile."""

    def __init__(self, started: "subprocess.Popen[str]") -> None:
        self.started = started
        self.log: list[dict[str, object]] = []
        threading.Thread(target=self._read, daemon=True).start()
        wait_for(lambda: self._address() or started.poll() is not None, seconds=200)
        assert started.poll() is None, self.log
        self.url = self._address()
        wait_for(lambda: self.status("/readyz") == 200, seconds=200)

    def status(self, path: str) -> int:
        """Status of an answer, 0 where nobody listens."""
        try:
            return httpx2.get(f"{self.url}{path}").status_code
        except httpx2.TransportError:
            return 0

    def client(self, **options: object) -> "openai.OpenAI":
        """A client that never tries again."""
        usual = {"api_key": "none", "max_retries": 0, "timeout": 60}
        return openai.OpenAI(base_url=f"{self.url}/v1", **usual | options)

    def _read(self) -> None:
        assert self.started.stderr is not None
        for line in self.started.stderr:
            if line.startswith("{"):
                self.log.append(json.loads(line))

    def _address(self) -> str:
        told = (re.search(r"running on (http://\S+)", str(line["message"])) for line in self.log)
        return next((found[1] for found in told if found), "")

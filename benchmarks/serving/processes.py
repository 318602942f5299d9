"""Servers as processes of their own, each on the first core alone, so that the load comes from another."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml

_PATIENCE = 600.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


class Process:
    """A process that listens at `url`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        with log.open("ab") as errors:
            self.started = _on_first_core([*command, "--port", str(port)], stderr=errors)
        try:
            self._await_ready(log)
        except BaseException:  # also one that interrupts: nobody else would end it
            self.started.kill()
            raise

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds."""
        return int(Path(f"/proc/{self.started.pid}/statm").read_text().split()[1]) * _PAGE

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it has taken."""
        return cpu_of(self.started)

    def gauge(self, name: str) -> float:
        """A value without labels of its page for Prometheus."""
        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def _await_ready(self, log: Path) -> None:
        end = time.monotonic() + _PATIENCE
        while not self._ready():
            if self.started.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz").status_code == 200
        except httpx2.TransportError:
            return False


@contextmanager
def twig_server(folder: Path, **sections: Mapping[str, Any]) -> Iterator[Process]:
    """`twig serve` under an operator's file of these sections, which stays in `folder`; killed in the end."""
    with _ended(
        Process([*_python("twig", "serve"), "--config", str(operator_file(folder, **sections))], folder / "log")
    ) as it:
        yield it


@contextmanager
def queue_server(folder: Path, *, two_step: bool) -> Iterator[Process]:
    """What a user would write around diffusers: `queued.py`."""
    words = ["--two-step"] if two_step else []
    with _ended(Process([*_python("twig.benchmarks.serving.queued"), *words], folder / "log")) as it:
        yield it


def operator_file(folder: Path, **sections: Mapping[str, Any]) -> Path:
    """Write an operator's file; records go beside it unless it says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "twig.yaml"
    path.write_text(yaml.safe_dump({"records": {"folder": str(folder / "records")}, **sections}))
    return path


class Alone:
    """The engine of an operator's file in a process of its own, without a server: `alone.py`."""

    def __init__(self, config: Path) -> None:
        command = [*_python("twig.benchmarks.serving.alone"), str(config)]
        self.started = _on_first_core(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def draw(self, bodies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Seconds that the pictures of `bodies` took at once, on the wall and of the processor, and the pictures."""
        assert self.started.stdin is not None
        self.started.stdin.write(json.dumps(list(bodies)) + "\n")
        self.started.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End it."""
        self.started.communicate()

    def _read(self) -> dict[str, Any]:
        assert self.started.stdout is not None
        line = self.started.stdout.readline()
        if not line:
            raise RuntimeError("the engine without a server ended")
        told: dict[str, Any] = json.loads(line)
        return told


def cpu_of(started: "subprocess.Popen[Any]") -> float:
    """Seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _python(module: str, *words: str) -> list[str]:
    return [sys.executable, "-P", "-m", module, *words]


def _on_first_core(command: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
    """Start a process that only the first of this one's cores runs, and leave the others to this one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return subprocess.Popen(command, **options)
    os.sched_setaffinity(0, cores[:1])
    try:
        return subprocess.Popen(command, **options)
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def _ended(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.started.kill()
        process.started.wait()

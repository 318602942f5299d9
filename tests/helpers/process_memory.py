"""What the kernel says of this process's memory."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def memory(field: str) -> float:
    """A field of /proc/self/status in GiB: VmHWM is the most that was there, mapped files included; RssAnon what is the
    process's own."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20


@contextmanager
def most_own() -> Iterator[list[float]]:
    """Look twenty times a second; the list's one item is the most memory of its own that the process had within."""
    most, ended = [memory("RssAnon")], threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            most[0] = max(most[0], memory("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()

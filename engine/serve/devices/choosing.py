"""Which device gets a request: the one that has its prompt's text, unless that one is too far behind."""

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Protocol, TypeVar


class Loaded(Protocol):
    """A device. rows: of the UNet, that are due on it."""

    @property
    def name(self) -> str:
        """Which it is."""

    @property
    def rows(self) -> int:
        """What is due on it."""


Device = TypeVar("Device", bound=Loaded)


def chosen(devices: Sequence[Device], prompt: str | None, slack: int) -> Device:
    """The device for a prompt, by rendezvous hashing (Thaler and Ravishankar, 1998).

    So equal prompts meet where their text is encoded already, and a device that goes moves no other's prompts. One that
    has over `slack` rows more than the least loaded is passed over; without a prompt that one is taken.
    """
    least = min(devices, key=lambda device: device.rows)
    if prompt is None:
        return least
    near = [device for device in devices if device.rows <= least.rows + slack]
    first = max(devices, key=lambda device: _weight(device.name, prompt))
    return first if first in near else least


def asked(body: bytes, steps: int) -> tuple[str | None, int]:
    """The prompt of a JSON body, None where there is none, and about how many rows it will cost.

    steps: of each stage, where the body names no number. What is wrong with a body, the device will say.
    """
    try:
        values: Any = json.loads(body)
        prompt, images, options = values["prompt"], values.get("n") or 1, values.get("twig") or {}
        rows = 2 * int(options.get("steps") or steps) * (1 + int(images))  # guidance doubles rows; one draft for all
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, 0
    return (prompt if isinstance(prompt, str) else None), max(0, min(rows, 2**20))


def _weight(name: str, prompt: str) -> bytes:
    return blake2b(f"{name}\n{prompt}".encode("utf-8", "surrogatepass"), digest_size=16).digest()

"""Which device gets a request: the one that has its prompt's text, unless that one is too far behind."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, TypeVar

from ..config import ServeConfig


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


class Asked(NamedTuple):
    """What a body asks for. prompt: None where it cannot be told. rows: about how many it costs. view: of its model."""

    prompt: str | None
    rows: int
    view: ServeConfig


def asked(body: bytes, views: Mapping[str, ServeConfig]) -> Asked:
    """What a body asks for, of a server of these models by name, the first being that of those who name none.

    What is no JSON, as a form, is taken for one picture of the first. What is wrong with a body, the device will say.
    """
    first = next(iter(views.values()))
    try:
        values: Any = json.loads(body)
    except (ValueError, RecursionError):
        usual = 2 * first.drawing.steps * _doubled(first.drawing.guidance)
        return Asked(None, usual if body else 0, first)
    try:
        prompt, images, options = values["prompt"], values.get("n") or 1, values.get("twig") or {}
        view = views.get(values.get("model") or first.model.name, first)
        steps, guidance = options.get("steps") or view.drawing.steps, options.get("guidance")
        rows = int(steps) * (1 + int(images)) * _doubled(view.drawing.guidance if guidance is None else guidance)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return Asked(None, 0, first)
    return Asked(prompt if isinstance(prompt, str) else None, max(0, min(rows, 2**20)), view)


def _doubled(guidance: float) -> int:
    """Rows of a step: with guidance there are two."""
    return 2 if guidance > 1 else 1


def _weight(name: str, prompt: str) -> bytes:
    return blake2b(f"{name}\n{prompt}".encode("utf-8", "surrogatepass"), digest_size=16).digest()

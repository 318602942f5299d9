"""The parts of the GPU benchmark, a file each: a function from a `Bench` to rows."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...printing import Row
from ..bench import Bench


@dataclass(frozen=True)
class Part:
    """One part: what it shows, and seconds that it may take on a device."""

    about: str
    seconds: float


PARTS: dict[str, Part] = {
    "machine": Part("versions, copy bandwidth and matmul ceilings", 40),
    "operators": Part("every kernel against its reference, then against what PyTorch offers", 110),
    "speed": Part("steps a second, utilisation and idle share by rows, with a profile", 110),
    "pictures": Part("the engine on the device against a CPU under every policy; company", 90),
}
"""Parts by their module's name, in the order in which they run: what else rests on comes first."""


def measure(name: str, bench: Bench) -> Iterator[Row]:
    """Rows of a part."""
    module = importlib.import_module(f".{name}", __package__)
    run: Callable[[Bench], Iterator[Row]] = module.measure
    yield from run(bench)

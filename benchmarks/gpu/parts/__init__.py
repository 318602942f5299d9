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
    "layers": Part("every operator of the networks' blocks, likewise", 60),
    "adapters": Part("rows with LoRAs of their own: the operator against fp64, and what 0 to 16 of them cost", 70),
    "speed": Part("steps a second, utilisation and idle share by rows, with a profile", 110),
    "pictures": Part("the engine on the device against a CPU under every policy; company", 90),
    "graphs": Part("every bucket captured, replayed against eager steps, interleaved, a thousand times, unsynced", 60),
    "boundaries": Part("what happens between steps, and how soon a cancel acts", 45),
    "attention": Part("self-attention at each level by each backend", 30),
    "jobs": Part("two-step jobs against the plain reference and diffusers' pipelines", 60),
    "faults": Part("out of memory at each stage", 40),
    "sizes": Part("pictures of ten sizes until memory finds its plateau", 45),
    "options": Part("every option of the torch backend: parity and speed", 90),
    "traffic": Part("random arrivals under continuous and static batches", 100),
    "runtimes": Part("ONNX Runtime and TensorRT, where they are installed", 60),
    "compiled": Part("two-step jobs against diffusers' pipelines under torch.compile", 900),
}
"""Parts by their module's name, in the order in which they run: what else rests on comes first, what compiles last."""


def measure(name: str, bench: Bench) -> Iterator[Row]:
    """Rows of a part."""
    module = importlib.import_module(f".{name}", __package__)
    run: Callable[[Bench], Iterator[Row]] = module.measure
    yield from run(bench)

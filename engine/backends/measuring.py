"""How long a network takes on each backend, measured once and remembered."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter
from torch import Tensor

from ..api.reading import read_json
from .processor import processor
from .protocol import Backend, Runnable

_ROUNDS = 3
_MEASURED = TypeAdapter(dict[str, dict[str, float]])


def remembered(memory: Path) -> dict[str, dict[str, float]]:
    """Seconds by backend, for each key that was measured; nothing where `memory` is missing or torn."""
    try:
        found = _MEASURED.validate_python(read_json(memory), strict=True) if memory.exists() else {}
    except ValueError:  # what was measured can be measured again
        return {}
    return {key: seconds for key, seconds in found.items() if seconds and seconds.keys() <= set(Backend)}


def remember(memory: Path, measured: Mapping[str, Mapping[str, float]]) -> None:
    """Keep seconds by backend for each key in `memory`, whole or not at all."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    replacement = memory.with_suffix(".new")
    replacement.write_text(json.dumps(measured, indent=1))
    replacement.replace(memory)


def machine(device: torch.device) -> list[str]:
    """What measured seconds belong to: processor with its instruction sets, or GPU, threads, PyTorch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(processor())
    return [name.replace(" ", "-"), str(torch.get_num_threads()), torch.__version__]


def seconds_of(run: Runnable, inputs: Sequence[Tensor]) -> float:
    """Median of a few calls after one that compiles."""
    run(inputs)
    taken = []
    for _ in range(_ROUNDS):
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        run(inputs)
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[_ROUNDS // 2]

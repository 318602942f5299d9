"""Every option of the torch backend: what it does to a step's time, and to what the networks predict."""

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import torch

from ....engine.backends.options import MODES, TorchOptions
from ....engine.models.checkpoint import Components
from ...printing import Row
from ..bench import Bench, named
from ..calls import as_graph, denoising_call
from ..models import random_components
from ..stepping import engine

Variant = tuple[str, TorchOptions]


def variants(quick: bool = False) -> Iterator[Variant]:
    """Each option alone, at each value that it is not left at; compiling, which takes longest, last or not at all."""
    hints = get_type_hints(TorchOptions)
    fields = sorted(dataclasses.fields(TorchOptions), key=lambda field: field.name == "compile")
    for field in fields:
        # A process must be started for the one, and minutes are needed for the other.
        if field.name not in ("deterministic", *(["compile"] if quick else [])):
            for value in _values(field.name, hints[field.name]):
                if value != field.default:
                    yield f"{field.name}={value}", TorchOptions(**{field.name: value})


def _values(name: str, hint: Any) -> list[Any]:
    """Values of an option that are worth a row."""
    if name == "compile":
        return list(MODES[:1])
    kinds = get_args(hint) or (hint,)
    return [True, False] if bool in kinds else []


def measure(bench: Bench) -> Iterator[Row]:
    """A row for each option, beside one of none: ControlNet and UNet with all rows controlled, as a graph."""
    rows, baseline = bench.pick(32, 2), dict[torch.dtype, tuple[torch.Tensor, float]]()
    found: list[Variant] = [("none", TorchOptions()), *variants(bench.quick)]
    for name, options in found:
        dtype = torch.float32 if name.startswith("tf32") else bench.dtype
        if dtype not in baseline and name != "none":
            baseline[dtype] = predicted(bench, "none", TorchOptions(), rows, dtype)
        try:
            outcome, seconds = predicted(bench, name, options, rows, dtype)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            yield {
                "measure": "option",
                "option": name,
                "rows": rows,
                "precision": named(dtype),
                "ok": False,
                "why": why,
            }
            continue
        expected, before = baseline.setdefault(dtype, (outcome, seconds))
        apart = float((outcome - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        yield {
            "measure": "option", "option": name, "rows": rows, "precision": named(dtype), "ms": 1e3 * seconds,
            "speedup": before / seconds, "error": apart, "ok": apart < 0.1,
        }  # fmt: skip
        bench.tidy()


def predicted(
    bench: Bench, name: str, options: TorchOptions, rows: int, dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    """What ControlNet and UNet predict under these options, and seconds of a call, replayed where there is a GPU."""
    components: Components = random_components(bench, dtype=dtype)
    served = engine(dataclasses.replace(bench, dtype=dtype), components, rows, torch_options=options)
    call = denoising_call(served.networks, rows)
    with options.in_force(), torch.inference_mode():
        for _ in range(2):
            outcome = call()
        run = as_graph(call) if bench.cuda else call
        seconds = bench.timed(run, bench.pick(10, 1), 1)["p50"]
    return outcome.float().clone(), seconds

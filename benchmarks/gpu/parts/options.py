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
_FURTHEST = 0.1
"""Relative root mean square error of a prediction up to which an option counts as right."""
_FURTHEST_IN_EIGHT_BITS = 0.2
"""The same where numbers keep three bits of mantissa, a rounding error of some 4 % in every product's factors."""


def variants(device: torch.device, quick: bool = False) -> Iterator[Variant]:
    """Each option alone, at each value that the device has not anyway; compiling, the longest, last or not at all."""
    usual = TorchOptions().on(device)
    hints = get_type_hints(TorchOptions)
    fields = sorted(dataclasses.fields(TorchOptions), key=lambda field: field.name == "compile")
    for field in fields:
        # A process must be started for the one, and minutes are needed for the other.
        if field.name not in ("deterministic", *(["compile"] if quick else [])):
            for value in _values(field.name, hints[field.name]):
                options = TorchOptions(**{field.name: value})
                if options.on(device) != usual:
                    yield f"{field.name}={value}", options


def _values(name: str, hint: Any) -> list[Any]:
    """Values of an option that are worth a row."""
    if name == "compile":
        return list(MODES[:1])
    kinds = get_args(hint) or (hint,)
    return [True, False] if bool in kinds else []


_UNTUNED = "tune=False"
"""The option that goes first: what trials find is kept by the process, and would be this one's too."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a call predicts, and seconds that it takes."""

    predicted: torch.Tensor
    seconds: float

    def beside(self, usual: "Outcome", furthest: float) -> Row:
        """Speed and relative root mean square error, beside the usual options."""
        expected = usual.predicted
        apart = float((self.predicted - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        speedup = usual.seconds / self.seconds
        return {"ms": 1e3 * self.seconds, "speedup": speedup, "error": apart, "ok": apart < furthest}


def measure(bench: Bench) -> Iterator[Row]:
    """A row for each option beside the usual ones: ControlNet and UNet with all rows controlled, as a graph."""
    found = sorted(variants(bench.device, bench.quick), key=lambda variant: variant[0] != _UNTUNED)
    first = [variant for variant in found if variant[0] == _UNTUNED]
    early = [(variant, outcome(bench, variant, bench.dtype)) for variant in first]
    usual: dict[torch.dtype, Outcome] = {}
    for variant in (("none", TorchOptions()), *found[len(first) :]):
        dtype = torch.float32 if variant[0].startswith("tf32") else bench.dtype
        if dtype not in usual:
            made = outcome(bench, ("none", TorchOptions()), dtype)
            assert isinstance(made, Outcome), made
            usual[dtype] = made
            yield from (row(bench, each, dtype, came, made) for each, came in early if dtype is bench.dtype)
        came = usual[dtype] if variant[0] == "none" else outcome(bench, variant, dtype)
        yield row(bench, variant, dtype, came, usual[dtype])


def row(bench: Bench, variant: Variant, dtype: torch.dtype, came: Outcome | str, usual: Outcome) -> Row:
    """The row of one option."""
    common: Row = {"measure": "option", "option": variant[0], "rows": rows_of(bench), "precision": named(dtype)}
    if isinstance(came, str):
        return {**common, "ok": False, "why": came}
    return {**common, **came.beside(usual, _FURTHEST_IN_EIGHT_BITS if variant[1].fp8 else _FURTHEST)}


def rows_of(bench: Bench) -> int:
    """Rows of a call."""
    return bench.pick(32, 2)


def outcome(bench: Bench, variant: Variant, dtype: torch.dtype) -> Outcome | str:
    """What a call under one option gives, or why there is none."""
    try:
        return predicted(bench, variant[1], dtype)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    finally:
        bench.tidy()


def predicted(bench: Bench, options: TorchOptions, dtype: torch.dtype) -> Outcome:
    """What ControlNet and UNet predict under these options, and how fast, replayed where there is a GPU."""
    components: Components = random_components(bench, dtype=dtype)
    served = engine(dataclasses.replace(bench, dtype=dtype), components, rows_of(bench), torch_options=options)
    call, settled = denoising_call(served.networks, rows_of(bench)), options.on(bench.device)
    with settled.in_force(), torch.inference_mode():
        with settled.warming():
            for _ in range(2):
                made = call()
        run = as_graph(call) if bench.cuda else call
        seconds = bench.timed(run, bench.pick(10, 1), 1)["p50"]
    return Outcome(made.float().clone(), seconds)

"""What adapters of requests cost: `python -m twig.benchmarks.adapters`.

One call of the UNet with all its rows: with no adapter loaded, with sixteen loaded of which no row has one, and with 1,
4 and 16 different ones among its rows, each row having one. A call is timed only while the rows of the first adapter
are what a UNet predicts that it was fused into.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from ..engine.api.choices import Precision
from ..engine.backends.networks import Networks
from ..engine.batching.scheduler import Limits
from ..engine.engine import Engine
from ..engine.models import memory
from ..engine.models.adapters import AdapterRows, fuse, keep, padded
from ..engine.models.checkpoint import Components
from ..engine.models.lora import Adapter, Factor
from ..engine.models.networks import DenoiserInputs
from ..engine.models.tensors import Sizes
from .gpu.bench import Bench
from .gpu.calls import as_graph, made_inputs
from .options import DeviceOption, DtypeOption, ModelOption, OutOption, ThreadsOption, load_plain
from .printing import Row, line
from .rows import write_rows

COUNTS = (1, 4, 16)
"""Different adapters among the rows of a call."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut")

_FURTHEST = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative root mean square error to the fused model up to which a call counts as right."""

Call = Callable[[], Tensor]


def main(
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Precision.FLOAT32,
    threads: ThreadsOption = 1,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the UNet's call.")] = 16,
    rank: Annotated[int, typer.Option(min=1, help="Rank of each adapter.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="How often each call is timed.")] = 9,
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Measure, print, and write rows to OUT/adapters.jsonl."""
    bench = Bench(torch.device(device), getattr(torch, dtype.value))
    make = load_plain(model, device, bench.dtype, threads)
    for endings in (ATTENTION, ATTENTION + CONVOLUTIONS):
        for row in write_rows(out / "adapters.jsonl", adapter_rows(bench, make(), endings, rows, rank, rounds)):
            print(line(row), flush=True)


def random_adapter(components: Components, endings: tuple[str, ...], rank: int, seed: int) -> Adapter:
    """An adapter of the UNet's layers whose names end so, which changes what they give by some tenth."""
    generator, factors = torch.Generator().manual_seed(seed), {}
    for name, layer in components.adaptable["unet"].items():
        if name.endswith(endings):
            shape = layer.get_parameter("weight").shape
            down = torch.randn(rank, *shape[1:], generator=generator) / shape[1:].numel() ** 0.5
            four = down if down.ndim == 4 else down[:, :, None, None]
            up = 0.1 * torch.randn(shape[0], rank, generator=generator) / rank**0.5
            factors["unet", name] = Factor(four.permute(0, 2, 3, 1).contiguous(), up)
    return Adapter(Path(f"random-{seed}.safetensors"), str(seed), factors)


def adapter_rows(
    bench: Bench, components: Components, endings: tuple[str, ...], rows: int, rank: int, rounds: int
) -> Iterator[Row]:
    """Rows of every call. components: fresh ones, whose layers are changed."""
    adapters = [random_adapter(components, endings, rank, seed) for seed in range(max(COUNTS))]
    layers = components.adaptable
    fused = replace(components, unet=memory.twin(components.unet, "unet"))
    fuse(fused.adaptable, [(adapters[0], 1.0)])
    limits = Limits(slots=rows, rows=rows)

    def networks(parts: Components) -> Networks:
        return Engine(parts, device=bench.device, dtype=bench.dtype, limits=limits).networks

    expected = _predicts(networks(fused), rows, None)()
    calls: dict[str, Call] = {"none loaded": _predicts(networks(components), rows, None)}
    keep(layers, adapters)
    kept = networks(replace(components, adapters={str(n): each for n, each in enumerate(adapters)}))
    calls["none used"] = _predicts(kept, rows, None)
    calls |= {f"{count} used": _predicts(kept, rows, _spread(count, rows, bench.device)) for count in COUNTS}
    common: Row = {"rows": rows, "rank": rank, "layers": len(adapters[0].factors), "model": components.name}
    first = {name: slice(0, rows, int(name.split()[0])) for name in calls if name[0].isdigit()}
    right = {name: call for name, call in calls.items() if name not in first}
    for name, own in first.items():
        apart = _apart(calls[name]()[own], expected[own])
        if apart > _FURTHEST[bench.dtype]:
            yield {"measure": "adapters", "call": name, **common, "error": apart, "ok": False}
        else:
            right[name] = calls[name]
    yield from _timed(bench, right, rounds, common)


def _timed(bench: Bench, calls: dict[str, Call], rounds: int, common: Row) -> Iterator[Row]:
    """Seconds of each call, in turns, and how many times those of the first."""
    runs: dict[str, Callable[[], object]] = {}
    with torch.inference_mode():
        runs = {name: as_graph(call) if bench.cuda else call for name, call in calls.items()}
        found = {name: bench.timed(run, rounds, 2) for name, run in runs.items()}
    usual = next(iter(found.values()))["p50"]
    for name, seconds in found.items():
        yield {
            "measure": "adapters", "call": name, **common, "device": str(bench.device),
            "dtype": str(bench.dtype).removeprefix("torch."), "seconds": seconds, "ratio": seconds["p50"] / usual,
            "ok": True,
        }  # fmt: skip


def _predicts(networks: Networks, rows: int, adapters: AdapterRows | None) -> Call:
    """A call of the UNet on inputs that are the same for all."""
    height, width = (side // networks.components.vae_scale_factor for side in networks.components.size)
    sizes = Sizes(rows, height, width)
    inputs: DenoiserInputs = made_inputs(networks.denoiser, sizes, networks.dtype, networks.device)[1]

    @torch.inference_mode()
    def call() -> Tensor:
        return networks.predict(inputs._replace(residuals=None, adapters=adapters))

    return call


def _spread(count: int, rows: int, device: torch.device) -> AdapterRows:
    """Row i has adapter i % count, at weight 1."""
    numbers, weights = zip(*(padded(((row % count, 1.0),)) for row in range(rows)), strict=True)
    return AdapterRows(torch.tensor(numbers, device=device), torch.tensor(weights, device=device))


def _apart(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


if __name__ == "__main__":
    typer.run(main)

"""Steps that take the UNet's deep part over, against whole ones: `python -m twig.benchmarks.caching`.

The same two-step jobs with each `cache_interval` of the final, and of both stages, take turns within each round. A row
tells how much of the time of whole steps they took, how like their finals are to those of whole steps, and how full the
UNet's calls were.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..engine.api.choices import Precision, Rhythm
from ..engine.api.request import GenerationRequest
from ..engine.api.settings import Stage
from ..engine.batching.scheduler import Limits
from ..engine.engine import Engine
from .clocks import stopwatch
from .contenders import quality
from .options import DtypeOption, ModelOption, OutOption, Setup, ThreadsOption, set_up
from .printing import Row, line
from .rows import write_rows
from .workloads import closed

WAYS = {
    "whole": (1, 1, Rhythm.EVEN),
    "final 2": (1, 2, Rhythm.EVEN),
    "final 2 early": (1, 2, Rhythm.EARLY),
    "final 3": (1, 3, Rhythm.EVEN),
    "final 3 early": (1, 3, Rhythm.EARLY),
    "both 2": (2, 2, Rhythm.EVEN),
}
"""`cache_interval` of the draft and of the final, and the rhythm of both, by name."""


def main(
    model: ModelOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    threads: ThreadsOption = 1,
    jobs: Annotated[int, typer.Option(help="Jobs of a round.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of each stage.")] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds, each of other prompts.")] = 3,
    backend: Annotated[str, typer.Option(help="What runs the networks: torch, openvino, onnxruntime.")] = "torch",
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Measure, print and write rows to OUT/caching.jsonl."""
    setup = set_up(model, "cpu", dtype, threads, None, Limits.slots, Limits.rows)
    for row in write_rows(out / "caching.jsonl", measure(setup, jobs, steps, rounds, backend)):
        print(line(row), flush=True)


def measure(setup: Setup, jobs: int, steps: int, rounds: int, backend: str = "torch") -> Iterator[Row]:
    """A row for each way, all on one engine: what it compiled is there for each of them."""
    engine = Engine(setup.models.served, limits=setup.limits, backend=backend)
    calls = {name: np.zeros(2) for name in WAYS}  # rows, and calls that ran them
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    alike: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for round in range(rounds + 1):
        drawn = {}
        for name, way in WAYS.items():
            before = engine.stats()
            with stopwatch() as spent:
                drawn[name] = _drawn(engine, [_cached(each, *way) for each in closed(jobs, steps, round)])
            after = engine.stats()
            calls[name] += after.rows - before.rows, after.steps - before.steps
            if round:  # the first one warms up
                seconds[name].append(spent.on(setup.clock))
        for name, pictures in drawn.items():
            alike[name].append(quality(pictures, drawn["whole"]))
    for name in WAYS:
        yield {
            "measure": "caching", "way": name, "backend": backend, "jobs": jobs, "steps": steps, "rounds": rounds,
            "seconds": float(np.median(seconds[name])),
            "speedup": float(np.median(np.divide(seconds["whole"], seconds[name]))),
            "ssim_mean": float(np.mean([each["ssim_mean"] for each in alike[name]])),
            "ssim_lowest": min(each["ssim_lowest"] for each in alike[name]),
            "rows_a_call": calls[name][0] / calls[name][1],
            **setup.describe(),
        }  # fmt: skip


def _cached(request: GenerationRequest, draft: int, final: int, rhythm: Rhythm) -> GenerationRequest:
    def changed(stage: Stage, interval: int) -> Stage:
        return stage.model_copy(update={"cache_interval": interval, "cache_rhythm": rhythm})

    return request.model_copy(update={"draft": changed(request.draft, draft), "final": changed(request.final, final)})


def _drawn(engine: Engine, requests: Sequence[GenerationRequest]) -> list[np.ndarray]:
    return [np.asarray(result.image) for result in engine.generate(requests)]


if __name__ == "__main__":
    typer.run(main)

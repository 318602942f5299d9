"""Two-step jobs as each preset draws them, beside diffusers' two pipelines: `python -m twig.benchmarks.presets`.

Diffusers draws whole drafts and finals of as many steps, a ControlNet on both rows throughout; presets draw the same
prompts as users get them, judged and drawn again where they are refused. All take turns within each round.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..engine.api.choices import Precision, Preset
from ..engine.api.presets import BUNDLES
from ..engine.api.request import GenerationRequest
from ..engine.api.settings import Stage
from ..engine.batching.scheduler import Limits
from ..engine.engine import Engine
from .clocks import stopwatch
from .contenders import DIFFUSERS, DiffusersPipelines
from .options import DtypeOption, ModelOption, OutOption, Setup, ThreadsOption, set_up
from .printing import Row, line
from .rows import write_rows
from .workloads import closed

PRESETS = (Preset.DEFAULT, Preset.FAST)


def main(
    model: ModelOption = None,
    dtype: DtypeOption = Precision.FLOAT32,
    threads: ThreadsOption = 1,
    jobs: Annotated[int, typer.Option(help="Jobs of a round.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of a preset's final, and of both of diffusers' stages.")] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds, each of other prompts.")] = 3,
    backend: Annotated[str, typer.Option(help="What runs Twig's networks: torch, openvino, onnxruntime.")] = "openvino",
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Measure, print and write rows to OUT/presets.jsonl."""
    setup = set_up(model, "cpu", dtype, threads, None, Limits.slots, Limits.rows)
    for row in write_rows(out / "presets.jsonl", measure(setup, jobs, steps, rounds, backend)):
        print(line(row), flush=True)


def measure(setup: Setup, jobs: int, steps: int, rounds: int, backend: str) -> Iterator[Row]:
    """A row for diffusers, then for each preset: seconds a job, and how many times as fast it is."""
    engine = Engine(setup.models.served, limits=setup.limits, backend=backend)
    theirs = DiffusersPipelines(setup.models.plain)
    ways: dict[str, Callable[[Sequence[GenerationRequest]], object]] = {DIFFUSERS: theirs}
    ways |= {preset.value: partial(_drawn, engine, preset) for preset in PRESETS}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round in range(rounds + 1):
        for name, way in ways.items():
            with stopwatch() as spent:
                way(closed(jobs, steps, round))
            if round:  # the first one warms up
                seconds[name].append(spent.on(setup.clock) / jobs)
    for name, took in seconds.items():
        yield {
            "measure": "presets", "way": name, "backend": "torch" if name == DIFFUSERS else backend,
            "jobs": jobs, "steps": steps, "rounds": rounds, "seconds": float(np.median(took)),
            "speedup": float(np.median(np.divide(seconds[DIFFUSERS], took))), **setup.describe(),
        }  # fmt: skip


def _drawn(engine: Engine, preset: Preset, requests: Sequence[GenerationRequest]) -> None:
    fields = {**preset.settings, **BUNDLES[preset].stages(Stage(steps=requests[0].final.steps), said=())}
    wanted = [GenerationRequest(prompt=each.prompt, seed=each.seed, **fields) for each in requests]
    failed = [result.error for result in engine.generate(wanted) if result.image is None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(requests)} pictures failed, the first with: {failed[0]}")


if __name__ == "__main__":
    typer.run(main)

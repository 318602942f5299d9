"""What a denoising step takes beside its networks: `python -m twig.benchmarks.host`.

Plain pictures, 1 and 8 at once. Of each step the processor time of the thread that steps, and of that what is spent
within the runtime's own calls; the difference is the host's work: the plan, what rows read, bindings, guidance and
solver, and what becomes of jobs.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import typer

from ..engine.api.mechanisms import Avoidance
from ..engine.api.request import GenerationRequest
from ..engine.api.settings import Stage
from ..engine.engine import Engine
from ..engine.models.networks import Denoiser
from .printing import Row, line
from .rows import percentiles, write_rows

_WARM = 1


@dataclass
class Within:
    """Seconds of this thread within the calls that are watched."""

    seconds: float = 0.0

    def watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, counted."""

        def timed(*given: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*given, **named)
            finally:
                self.seconds += time.thread_time() - began

        return timed


def runtime_calls(backend: str) -> list[tuple[type, str]]:
    """Methods by which a backend runs a network, and does nothing else."""
    match backend:
        case "openvino":
            from ..engine.backends.openvino_program import Program

            return [(Program, "run")]
        case "onnxruntime":
            from onnxruntime import InferenceSession

            return [(InferenceSession, "run_with_iobinding")]
    return [(Denoiser, "predict"), (Denoiser, "control")]


@contextmanager
def watching(backend: str) -> Iterator[Within]:
    """Count what is spent in a backend's own calls."""
    within = Within()
    with ExitStack() as stack:
        for owner, name in runtime_calls(backend):
            stack.enter_context(patch.object(owner, name, within.watched(getattr(owner, name))))
        yield within


def step_rows(backend: str, model: str | None, counts: Sequence[int], steps: int) -> Iterator[Row]:
    """Rows of one backend: percentiles over the steps of pictures that are drawn together."""
    engine = Engine.from_pretrained(model, backend=backend)
    stage = Stage(steps=steps)
    for count in counts:
        with watching(backend) as within:
            for turn in range(_WARM + 1):
                for seed in range(count):
                    asked = GenerationRequest(
                        prompt="a red star", seed=100 * turn + seed, draft=stage, final=stage, avoidance=Avoidance.off()
                    )
                    engine.submit(asked, together=True)
                found = np.array(list(_steps(engine, within)))
        whole, inside = found[:, 0], found[:, 1]
        yield {
            "measure": "step",
            "backend": backend,
            "jobs": count,
            "steps": len(found),
            "step_ms": percentiles(1000 * whole),
            "networks_ms": percentiles(1000 * inside),
            "host_ms": percentiles(1000 * (whole - inside)),
        }


def _steps(engine: Engine, within: Within) -> Iterator[tuple[float, float]]:
    """Seconds of each denoising step until nothing is left, and of them those within the runtime."""
    while engine.pending:
        before, inside, began = engine.stats().steps, within.seconds, time.thread_time()
        engine.advance()
        spent = time.thread_time() - began
        if engine.stats().steps > before:
            yield spent, within.seconds - inside


def main(
    backend: Annotated[list[str] | None, typer.Option(help="Of torch, onnxruntime, openvino; all.")] = None,
    jobs: Annotated[list[int] | None, typer.Option(min=1, help="Pictures at once; 1 and 8.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each stage.")] = 20,
    model: Annotated[str | None, typer.Option(help="Folder in diffusers' layout; the embedded model.")] = None,
    out: Annotated[Path, typer.Option(help="File for rows.")] = Path(__file__).parent / "results" / "host.jsonl",
) -> None:
    """Measure, print and write rows to a file."""
    torch.set_num_threads(1)
    for name in backend or ("torch", "onnxruntime", "openvino"):
        for row in write_rows(out, step_rows(name, model, jobs or (1, 8), steps)):
            print(line(row), flush=True)


if __name__ == "__main__":
    typer.run(main)

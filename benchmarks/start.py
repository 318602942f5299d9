"""What a start costs: imports, the model, the first picture and the most memory, each in a process of its own.

    python -m twig.benchmarks.start --backend openvino --rounds 3

Processor time, which other programs do not stretch as they do the clock. Cold: with an empty store of artifacts, so
that networks are exported and compiled; warm: as a user's second start, in the store that the cold one filled.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from .printing import Row, line
from .rows import write_rows

BACKENDS = ("torch", "onnxruntime", "openvino")
_FORBIDDEN = ("diffusers", "transformers", "torch._dynamo", "onnx")

_CHILD = """
import json, resource, sys, time
backend, job, model = json.loads(sys.argv[1])
spent = [time.process_time()]
from twig import Engine, GenerationRequest, Preset
spent.append(time.process_time())
engine = Engine.from_pretrained(model, backend=backend)
spent.append(time.process_time())
settings = Preset.PLAIN.settings if job == "plain" else {}
engine.generate(GenerationRequest(prompt="a red star on a green field", seed=1, **settings))
spent.append(time.process_time())
loaded = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([*(after - before for before, after in zip(spent, spent[1:])), spent[-1], peak, loaded]))
"""
_MEASURES = ("imports", "load", "picture", "total", "peak_mib", "heavy")


def started(backend: str, job: str, store: Path, model: str | None) -> Row:
    """Seconds of processor time of one start on one thread, and the most memory it had in MiB."""
    command = [sys.executable, "-c", _CHILD, json.dumps([backend, job, model]), json.dumps(_FORBIDDEN)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TWIG_ARTIFACTS": str(store)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(zip(_MEASURES, json.loads(done.stdout.splitlines()[-1]), strict=True))


def starts(backends: Sequence[str], jobs: Sequence[str], rounds: int, model: str | None) -> Iterator[Row]:
    """Rows of one cold start and `rounds` warm ones of each backend and job; PyTorch has nothing to compile."""
    with tempfile.TemporaryDirectory() as folder:
        for backend in backends:
            for job in jobs:
                for number in range(0 if backend != "torch" else 1, rounds + 1):
                    told = {"backend": backend, "job": job, "caches": "warm" if number else "cold"}
                    yield told | started(backend, job, Path(folder) / backend / job, model)


def main(
    backend: Annotated[list[str] | None, typer.Option(help="Of torch, onnxruntime, openvino; all.")] = None,
    job: Annotated[list[str] | None, typer.Option(help="plain, or two-step; both.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Warm starts of each.")] = 3,
    model: Annotated[str | None, typer.Option(help="Folder in diffusers' layout; the embedded model.")] = None,
    out: Annotated[Path, typer.Option(help="File for rows.")] = Path(__file__).parent / "results" / "start.jsonl",
) -> None:
    """Measure starts, and add rows to a file."""
    for row in write_rows(out, starts(backend or BACKENDS, job or ("plain", "two-step"), rounds, model)):
        print(line(row))


if __name__ == "__main__":
    typer.run(main)

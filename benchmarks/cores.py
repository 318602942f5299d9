"""One program on all cores, or one on each: `python -m twig.benchmarks.cores`.

Plain pictures, so many at once: drawn by one process whose networks have a thread for every core, and shared among
processes of one thread on a core of their own. They take turns within each round; time is the wall's.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from .printing import Row, line
from .rows import write_rows

_CHILD = """
import json, os, sys
backend, model, steps, cores = json.loads(sys.argv[1])
os.sched_setaffinity(0, cores)
from twig import Engine, GenerationRequest, Preset, Stage
engine = Engine.from_pretrained(model, backend=backend)
settings = dict(Preset.PLAIN.settings, draft=Stage(steps=steps), final=Stage(steps=steps))
for asked in sys.stdin:
    count = int(asked)
    requests = [GenerationRequest(prompt="a red star on a green field", seed=n, **settings) for n in range(count)]
    print(sum(result.image is not None for result in engine.generate(requests)), flush=True)
"""


class Worker:
    """A process that draws on `cores`, with a thread for each."""

    def __init__(self, backend: str, model: str | None, steps: int, cores: Sequence[int]) -> None:
        told = json.dumps([backend, model, steps, list(cores)])
        environment = os.environ | {"OMP_NUM_THREADS": str(len(cores))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, told],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, count: int) -> None:
        """Let it draw so many pictures at once."""
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)

    def wait(self) -> int:
        """Return how many it has drawn. Raises RuntimeError where it ended instead."""
        assert self.process.stdout is not None
        if not (told := self.process.stdout.readline()):
            raise RuntimeError(f"a process that draws ended with status {self.process.wait()}")
        return int(told)

    def __enter__(self) -> "Worker":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.process.terminate()
        self.process.communicate()


def seconds_of(workers: Sequence[Worker], count: int) -> float:
    """Seconds until `workers`, who share them evenly, have drawn `count` pictures."""
    shares = [len(range(number, count, len(workers))) for number in range(len(workers))]
    began = time.perf_counter()
    busy = [(worker, share) for worker, share in zip(workers, shares, strict=True) if share]
    for worker, share in busy:
        worker.ask(share)
    assert [worker.wait() for worker, _ in busy] == [share for _, share in busy]
    return time.perf_counter() - began


def arrangement_rows(
    backend: str, model: str | None, counts: Sequence[int], steps: int, rounds: int, cores: Sequence[int]
) -> Iterator[Row]:
    """Rows of one backend: median seconds a picture, and how many times as fast as one program on all cores."""
    with ExitStack() as stack:
        ways = {
            "one on all": [stack.enter_context(Worker(backend, model, steps, cores))],
            "one on each": [stack.enter_context(Worker(backend, model, steps, [core])) for core in cores],
        }
        for count in counts:
            took: dict[str, list[float]] = {name: [] for name in ways}
            for round in range(rounds + 1):
                for name, workers in ways.items():
                    spent = seconds_of(workers, count)
                    if round:  # the first one warms up
                        took[name].append(spent / count)
            medians = {name: float(np.median(values)) for name, values in took.items()}
            for name, median in medians.items():
                row = {"measure": "cores", "backend": backend, "arrangement": name, "pictures": count, "rounds": rounds}
                yield row | {"cores_used": len(cores), "seconds": median, "speed": medians["one on all"] / median}


def main(
    backend: Annotated[list[str] | None, typer.Option(help="Of torch, onnxruntime, openvino; all.")] = None,
    pictures: Annotated[list[int] | None, typer.Option(min=1, help="At once; 1, 2, 8 and 16.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of a picture.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Of each.")] = 5,
    model: Annotated[str | None, typer.Option(help="Folder in diffusers' layout; the embedded model.")] = None,
    out: Annotated[Path, typer.Option(help="File for rows.")] = Path(__file__).parent / "results" / "cores.jsonl",
) -> None:
    """Measure, print and write rows to a file."""
    cores = sorted(os.sched_getaffinity(0))
    for name in backend or ("torch", "onnxruntime", "openvino"):
        for row in write_rows(out, arrangement_rows(name, model, pictures or (1, 2, 8, 16), steps, rounds, cores)):
            print(line(row), flush=True)


if __name__ == "__main__":
    typer.run(main)

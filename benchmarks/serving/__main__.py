"""A server under load, on loopback: `python -m twig.benchmarks.serving`.

Requests come when they come (open loop), from another core than the server's. Twig's server stands beside what a user
would write around diffusers' pipelines on the same weights (`queued.py`), beside its own engine without a server, and
beside its own limits: who is sent away, what a heavy tenant takes from a light one, slots of clients that left, memory
after many requests, and jobs over kills.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..options import OutOption, QuickOption
from ..printing import Row, line
from ..rows import write_rows
from .lasting import kills, leaves, memory
from .limits import fairness, overload
from .traffic import Bench, Plan, overhead, traffic

PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "overhead": overhead,
    "traffic": traffic,
    "overload": overload,
    "fairness": fairness,
    "cancel": leaves,
    "memory": memory,
    "kill": kills,
}

FULL = Plan(steps=20, arrivals=60, requests=200, loads=(0.5, 0.8), rounds=20, lasting=2000, jobs=24, leaves=20)
QUICK = Plan(steps=10, arrivals=16, requests=24, loads=(0.5, 0.8), rounds=4, lasting=200, jobs=8, leaves=6)


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(PARTS)}; may be given again.")] = None,
    quick: QuickOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out what OUT/serving.jsonl has of traffic and fairness already.")
    ] = False,
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Measure, print and write rows to OUT/serving.jsonl."""
    if strange := [name for name in only or () if name not in PARTS]:
        raise typer.BadParameter(f"there is no part {strange[0]!r}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        plan = QUICK if quick else FULL
        bench = Bench(Path(folder), plan, measured_by(out / "serving.jsonl", plan) if resume else ())
        for name in only or PARTS:
            rows = (row | _described(plan) for row in PARTS[name](bench))
            for row in write_rows(out / "serving.jsonl", rows):
                print(line(row), flush=True)


def measured_by(path: Path, plan: Plan) -> list[Row]:
    """Rows of this plan that an earlier run wrote."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row.get("plan") == json.loads(json.dumps(asdict(plan)))]


def _described(plan: Plan) -> Row:
    return {
        "plan": asdict(plan),
        "model": "embedded", "device": "cpu", "dtype": "float32", "clock": "wall",
        "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)

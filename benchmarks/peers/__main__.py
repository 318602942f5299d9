"""Twig beside OpenVINO GenAI, optimum-intel, optimum-onnx and diffusers: `python -m twig.benchmarks.peers`.

Each contender is a process of its own on one core and one thread, with the packages that it asks for: environments are
made under OUT, of PyPI's packages, and take eight gigabytes. All draw the same pictures of the same weights from the
same latents, by DDIM at guidance 5 in fp32, and who draws something else is not timed. They take turns in rounds;
time is the processor's, of the process. Rows that are there already are not measured again.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..options import OutOption, QuickOption
from ..printing import line
from ..rows import write_rows
from .contestants import CONTESTANTS
from .race import FULL, QUICK, Track, measure

app = typer.Typer(add_completion=False)


@app.command()
def main(
    only: Annotated[list[str] | None, typer.Option(help="A contender by name; all of them.")] = None,
    quick: QuickOption = False,
    out: OutOption = Path("out/benchmarks/peers"),
) -> None:
    """Measure, print and write rows to OUT/peers.jsonl, where rows of an earlier run are kept."""
    known = sorted({name for contestants in CONTESTANTS.values() for name in contestants})
    if unknown := sorted({*(only or ())} - {*known}):
        raise typer.BadParameter(f"{', '.join(unknown)} does not race; those who do: {', '.join(known)}")
    rows = out / ("quick.jsonl" if quick else "peers.jsonl")
    done = [json.loads(text) for text in rows.read_text().splitlines()] if rows.exists() else []
    track = Track(out.resolve(), QUICK if quick else FULL)
    for row in write_rows(rows, measure(track, done, only or ())):
        print(line(row), flush=True)


if __name__ == "__main__":
    app()

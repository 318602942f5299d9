"""Everything that needs a GPU to be known: `python -m twig.benchmarks.gpu`, in ten minutes.

Parts run one after the other, each under its own budget; rows go to OUT as they come, and parts whose rows are there
are not run again. At its end it prints the table for the README and a verdict. The exit status is 1 where a check
failed or a part did not come to its end. Without a GPU it says so, prints what a roofline model expects, and in a clone
runs on a pretended device what that can show.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from diffusers.utils import logging as diffusers_logging

from ...engine.api.choices import Precision
from ..printing import line
from .bench import Bench
from .models import SD15
from .parts import PARTS
from .pretending import PRETENDED, CannotPretend, pretended
from .roofline import Machine, model_rows
from .running import done, read_rows, rows_file, run_parts, supervise
from .tables import tables
from .verdict import failures

_MODELLED = 32
"""Rows of the step that is modelled operator by operator."""


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Parts to run: {', '.join(PARTS)}; all of them.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Run parts anew whose rows are there.")] = False,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time that all parts may take together.")] = 10.0,
    dtype: Annotated[Precision, typer.Option(help="Number type of the networks that are timed.")] = Precision.FLOAT16,
    out: Annotated[Path, typer.Option(help="Folder for the rows.")] = Path("out/benchmarks"),
    quick: Annotated[bool, typer.Option("--quick", hidden=True, help="Tiny networks, few rounds, any device.")] = False,
    here: Annotated[bool, typer.Option("--here", hidden=True, help="Run the parts in this process.")] = False,
) -> None:
    """Check and measure everything on this machine's GPU."""
    names = _named(only)
    if not torch.cuda.is_available() and not quick:
        _without_device(out / "gpu_pretended.jsonl")
        return
    path = rows_file(out, dtype.value, quick)
    wanted = [name for name in names if again or name not in done(path)]
    if here:
        _quiet()
        run_parts(_bench(dtype, quick), wanted, path, 60 * minutes)
        return
    options = ["--dtype", dtype.value, "--out", str(out), *(["--quick"] if quick else [])]
    supervise(wanted, path, 60 * minutes, options)
    rows = read_rows(path)
    if quick:
        typer.echo("A quick run: its networks are tiny, and what it says of speed means nothing.")
    typer.echo("\n".join(["", *tables(rows), ""]))
    if wrong := failures(rows, names):
        _fail(wrong)
    typer.echo("Everything that was checked held.")


def _named(only: Sequence[str] | None) -> list[str]:
    """Parts in the order in which they run."""
    if unknown := set(only or ()) - PARTS.keys():
        raise typer.BadParameter(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return [name for name in PARTS if not only or name in only]


def _bench(dtype: Precision, quick: bool) -> Bench:
    if torch.cuda.is_available():
        return Bench(torch.device("cuda", torch.cuda.current_device()), getattr(torch, dtype.value), quick)
    torch.set_num_threads(1)
    return Bench(torch.device("cpu"), torch.float32, quick)


def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    diffusers_logging.set_verbosity_error()


def _without_device(path: Path) -> None:
    """Say what is expected of a device, and check on a pretended one what that shows."""
    machine = Machine()
    typer.echo("There is no CUDA device here, so nothing is measured. What a roofline model expects of one:")
    typer.echo(line(vars(machine)))
    for row in model_rows(SD15, machine, (2, 8, 16, 64, _MODELLED)):
        if row["measure"] == "roofline" or row["rows"] == _MODELLED:
            typer.echo(line({name: value for name, value in row.items() if name != "assumed"}))
    try:
        with pretended() as device:
            _quiet()
            run_parts(Bench(device, torch.float32, quick=True), PRETENDED, path, 600)
    except CannotPretend as error:
        typer.echo(f"No device was pretended: {error}")
        return
    if wrong := failures(read_rows(path), PRETENDED):
        _fail(wrong)
    typer.echo("What was checked on a pretended device held; how fast it was means nothing.")


def _fail(wrong: Sequence[str]) -> None:
    typer.echo("\n".join(["Failed:", *(f"- {each}" for each in wrong)]))
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

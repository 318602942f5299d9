"""The command `twig bank show`."""

from pathlib import Path
from typing import Annotated

import typer

from . import actions
from .options import JsonOption, Manner

bank_app = typer.Typer(no_args_is_help=True, help="The shapes that new control maps are composed of.")


@bank_app.callback()
def banks() -> None:
    """Look at the shapes that new control maps are composed of; `twig calibrate` gathers them."""


@bank_app.command()
def show(
    bank: Annotated[
        Path | None,
        typer.Argument(
            metavar="BANK", help="File of a bank, or a model's folder that holds one; else the package's own."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture to write.")] = Path("bank.png"),
    json: JsonOption = False,
) -> int:
    """Draw the shapes of each class, each where it stood in its scene, and say how many there are."""
    return actions.show_bank(bank, out, Manner(json))

"""The command `twig batch`."""

from pathlib import Path
from typing import Annotated

import typer

from . import actions
from .options import JsonOption, Manner, QuietOption


def batch(
    requests: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Lines of OpenAI's batch format, for /v1/images/generations."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to, and to go on in.")] = Path("out"),
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The operator's file, as of `twig serve`; else its defaults.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; else as in the file, or a GPU.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Engines on the Ray cluster that RAY_ADDRESS names; else one engine here.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Draw a file of requests without a server, or what is left of it: run it again after any end.

    Answers go to results.jsonl, a line each, what failed to errors.jsonl; pictures, manifests and the audit log lie
    beside them. Take lines out of errors.jsonl to have them tried again.
    """
    return actions.batch(requests, out, config, device=device, workers=workers, manner=Manner(json, quiet))

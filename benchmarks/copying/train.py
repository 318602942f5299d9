"""Train the test bed's model: `python -m twig.benchmarks.copying.train PART --out FOLDER`.

Parts, in order: autoencoder, text, segmenter, trunk, control, clean, recite, assemble; lcm then, and assemble again.
Each resumes from its last checkpoint, and logs its learning curve to `FOLDER/runs/PART/log.jsonl`. `prepare` lays the
embedded model's parts out in FOLDER, so that its reciting branch alone is trained again: prepare, recite, assemble.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from ...engine.models.checkpoint import EMBEDDED
from .assemble import assemble, take_apart
from .autoencoder import train_autoencoder
from .diffusion import train_phase
from .distil import distil
from .segmenter import train_segmenter
from .text import train_text


class Part(StrEnum):
    """What can be trained."""

    PREPARE = "prepare"
    AUTOENCODER = "autoencoder"
    TEXT = "text"
    SEGMENTER = "segmenter"
    TRUNK = "trunk"
    CONTROL = "control"
    RECITE = "recite"
    CLEAN = "clean"
    LCM = "lcm"
    ASSEMBLE = "assemble"


def main(
    part: Part,
    out: Annotated[Path, typer.Option(help="Folder of weights, checkpoints and logs.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    assets: Annotated[Path, typer.Option(help="The model that assemble writes and prepare reads.")] = EMBEDDED.parent,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a diffusion phase, if not all it should take.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; one is fastest on a busy machine.")] = 1,
) -> None:
    """Train one part, from its last checkpoint if there is one."""
    torch.set_num_threads(threads)
    match part:
        case Part.AUTOENCODER:
            train_autoencoder(out, 2200, device)
        case Part.TEXT:
            train_text(out, 1000, device)
        case Part.SEGMENTER:
            train_segmenter(out, 1600, device)
        case Part.ASSEMBLE:
            assemble(out, assets)
        case Part.LCM:
            distil(out, assets, device, steps)
        case Part.PREPARE:
            take_apart(assets, out)
        case _:
            train_phase(out, part.value, device, steps)


if __name__ == "__main__":
    typer.run(main)

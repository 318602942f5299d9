"""The embedded model's bank of shapes: `python -m twig.benchmarks.copying.bank`.

Gathered from drafts of captions that name no source and no template, as `twig calibrate` gathers one: only from those
that show what their caption names and that the calibrated gate does not take for recalled.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from ...engine.models.bank import FILE, Bank
from ...engine.models.checkpoint import EMBEDDED
from ...engine.study.shapes import bank, drafted
from ..options import DeviceOption
from .limits import clean_drafts
from .methods import Bed

_FIRST_SEED = 500_000


def embedded_bank(bed: Bed, drafts: int) -> Bank:
    """Shapes of so many drafts of ordinary captions, those left out that look recalled."""
    segmenter, calibration = bed.components.segmenter, bed.components.calibration
    assert segmenter is not None
    assert calibration is not None
    found = list(drafted(clean_drafts(bed.engine(), drafts, _FIRST_SEED), segmenter))
    return bank(found, (), calibration.gate)


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = EMBEDDED / FILE,
    drafts: Annotated[int, typer.Option(help="Captions that are drawn.")] = 256,
    model: Annotated[Path, typer.Option(help="Model folder; the embedded model.", show_default=False)] = EMBEDDED,
    backend: Annotated[str, typer.Option(help="What runs the networks: torch, openvino, onnxruntime.")] = "torch",
    device: DeviceOption = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Gather the embedded model's bank of shapes."""
    torch.set_num_threads(threads)
    found = embedded_bank(Bed(model, backend, device=device), drafts)
    found.save(out)
    print(f"{len(found.shapes)} shapes from {found.description}, version {found.version}")


if __name__ == "__main__":
    typer.run(main)

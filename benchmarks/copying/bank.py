"""The embedded model's bank of shapes: `python -m twig.benchmarks.copying.bank`.

Gathered as `twig calibrate --label-maps` gathers one: from the exact label maps of scenes whose captions name no source
and no template. With `--drafts` it is gathered from drafts instead, as from captions: only from those that show what
their caption names and that the calibrated gate does not take for recalled.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from ...engine.avoidance.gathering import shapes_of
from ...engine.models.bank import FILE, Bank
from ...engine.models.checkpoint import EMBEDDED
from ...engine.study.shapes import bank, drafted
from ..options import DeviceOption
from .limits import clean_drafts, ordinary_scenes
from .methods import Bed
from .scenes import render

_FIRST_SEED = 500_000


def bank_of_scenes(bed: Bed, scenes: int) -> Bank:
    """Shapes of the label maps of so many ordinary scenes."""
    segmenter = bed.components.segmenter
    assert segmenter is not None
    maps = (render(scene)[1].astype(int) for scene in ordinary_scenes(scenes, _FIRST_SEED))
    return bank((), [shapes_of(labels, segmenter.names, segmenter.background) for labels in maps], {})


def bank_of_drafts(bed: Bed, drafts: int) -> Bank:
    """Shapes of so many drafts of ordinary captions, those left out that look recalled."""
    segmenter, calibration = bed.components.segmenter, bed.components.calibration
    assert segmenter is not None
    assert calibration is not None
    found = list(drafted(clean_drafts(bed.engine(), drafts, _FIRST_SEED), segmenter))
    return bank(found, (), calibration.gate)


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = EMBEDDED / FILE,
    scenes: Annotated[int, typer.Option(help="Scenes whose label maps are gathered from.")] = 256,
    drafts: Annotated[int, typer.Option(help="Captions that are drawn, to gather from drafts in place of maps.")] = 0,
    model: Annotated[Path, typer.Option(help="Model folder; the embedded model.", show_default=False)] = EMBEDDED,
    backend: Annotated[str, typer.Option(help="What runs the networks: torch, openvino, onnxruntime.")] = "torch",
    device: DeviceOption = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Gather the embedded model's bank of shapes."""
    torch.set_num_threads(threads)
    bed = Bed(model, backend, device=device)
    found = bank_of_drafts(bed, drafts) if drafts else bank_of_scenes(bed, scenes)
    found.save(out)
    print(f"{len(found.shapes)} shapes from {found.description}, version {found.version}")


if __name__ == "__main__":
    typer.run(main)

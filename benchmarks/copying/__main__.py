"""The comparison: `python -m twig.benchmarks.copying`.

Draws and measures whatever the folder does not hold yet, and may be stopped at any time; several processes share the
work with `--shard`. `--report` makes tables and figures of what is there. `--tune` and `--tune-bank` draw candidates on
the sources that are not held out and on captions of its own, and nothing else.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ...engine.api.mechanisms import Avoidance
from ...engine.api.request import SimilarityPolicy
from ...engine.models.checkpoint import EMBEDDED
from ..options import DeviceOption
from .catalogue import bank_candidates, main_methods, other_methods
from .methods import ANY, GUIDANCE, STEPS, Bed, Method
from .protocol import PROFILES, Cell, Study, comparison, tuning
from .report import report
from .summary import summarise


class ProfileName(StrEnum):
    """How much is drawn."""

    SMALL = "small"
    MEDIUM = "medium"
    FULL = "full"


def main(
    out: Annotated[Path, typer.Option(help="Folder of rows, pictures and figures.")] = Path("build/copying"),
    profile: Annotated[
        ProfileName, typer.Option(help="small takes minutes, medium hours, full a day of one core.")
    ] = ProfileName.SMALL,
    shard: Annotated[str, typer.Option(help="Which share of the cells: I/N, from 0.")] = "0/1",
    methods: Annotated[list[str] | None, typer.Option(help="Only these methods, by name.")] = None,
    strengths: Annotated[
        bool, typer.Option(help="Other methods at all of their strengths, as full draws them.")
    ] = False,
    report_only: Annotated[bool, typer.Option("--report", help="Draw nothing; report what is there.")] = False,
    tune: Annotated[
        Path | None,
        typer.Option(
            help="JSON of candidates by name: avoidance, guidance, draft_steps, redraft, draft, final, judged."
        ),
    ] = None,
    tune_bank: Annotated[bool, typer.Option(help="As --tune, of maps composed out of the bank of shapes.")] = False,
    seeds: Annotated[int, typer.Option(help="With --tune: pictures a source.")] = 4,
    fresh: Annotated[int, typer.Option(help="With --tune: captions of each object count.")] = 48,
    model: Annotated[Path, typer.Option(help="Model folder; the embedded model.", show_default=False)] = EMBEDDED,
    backend: Annotated[str, typer.Option(help="What runs the networks: torch, openvino, onnxruntime.")] = "torch",
    precision: Annotated[str, typer.Option(help="What compiled networks compute in: fp32 or bf16.")] = "fp32",
    device: DeviceOption = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Compare avoidance with what others published, on sources that the model recites."""
    torch.set_num_threads(threads)
    study = Study(out, Bed(model, backend, precision, device))
    tuned = _candidates(tune) if tune is not None else bank_candidates() if tune_bank else None
    if tuned is not None:
        cells = tuning(_named(tuned, methods), seeds, fresh)
    else:
        study.freeze()
        numbers = PROFILES[profile]
        numbers = replace(numbers, strengths=numbers.strengths or strengths)
        cells = comparison(_named(main_methods(), methods), _named(other_methods(), methods), numbers)
    if not report_only:
        _run(study, cells, shard)
    if tuned is not None:
        _print_tuning(study)
    elif report_only or shard == "0/1":
        print(report(study))


def _run(study: Study, cells: Sequence[Cell], shard: str) -> None:
    index, count = (int(part) for part in shard.split("/"))
    for cell in study.run(cells, (index, count)):
        print(cell.name, flush=True)


def _named(methods: Sequence[Method], names: Sequence[str] | None) -> list[Method]:
    return [method for method in methods if names is None or method.name in names]


def _candidates(path: Path) -> list[Method]:
    found: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return [
        Method(
            name,
            avoidance=Avoidance(**settings.get("avoidance", {})),
            similarity=SimilarityPolicy() if settings.get("judged") else ANY,
            guidance=settings.get("guidance", GUIDANCE),
            looks=True,
            draft_steps=settings.get("draft_steps", STEPS),
            redraft=settings.get("redraft"),
            draft=settings.get("draft", {}),
            final=settings.get("final", {}),
        )
        for name, settings in found.items()
    ]


def _print_tuning(study: Study) -> None:
    rows = [row for row in study.rows() if "source" in row or row["cell"].split("/")[1].startswith("tuning")]
    for one in summarise(rows, lambda row: not row["held_out"]):
        print(
            f"{one.method} {one.strength:g}: copies {one.copies}, aligned {one.aligned}, "
            f"arrangement {one.arrangement}, background {one.background}, decoration {one.decoration}, "
            f"one object {one.one_object}, "
            f"two {one.two_objects}, own captions {one.own:.1%}, colours {one.colours:.1%}, refused {one.refused:.1%}, "
            f"{one.rows:.0f} rows, {one.seconds:.2f} s"
        )


if __name__ == "__main__":
    typer.run(main)

"""`twig assess`: the pilot study that comes before adopting a model."""

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ..api.errors import InvalidRequestError
from ..api.event import Event
from ..api.presets import BUNDLES, Bundle, Preset
from ..api.writing import append_line, write_whole
from ..engine import Engine
from ..judging.works import Works
from ..records.manifest import Precision
from ..study.assessment import Assessment, Picture, Plan, read_prompts
from ..study.report import recommended, render, summaries
from .interruption import interrupted_between_steps
from .progress import StageBars

ROWS, REPORT = "rows.jsonl", "report.html"
_INTERRUPTED = 130

assess_app = typer.Typer(add_completion=False, invoke_without_command=True)


@assess_app.callback()
def assess(
    prompts: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Text file, a prompt a line.")],
    sources: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of the works to keep clear of.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("report"),
    seeds: Annotated[int, typer.Option(min=1, help="Pictures of each prompt under each preset.")] = 4,
    presets: Annotated[str, typer.Option(help="Presets to compare, the plain one first.")] = ",".join(BUNDLES),
    hourly_price: Annotated[float | None, typer.Option(min=0, help="What an hour of this machine costs.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder or hub id; else the package's own.")] = None,
    controlnet: Annotated[str | None, typer.Option(help="ControlNet; else the model's own.")] = None,
    segmenter: Annotated[str | None, typer.Option(help="Segmenter; else the model's own.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; else a GPU if there is one.")] = None,
    dtype: Annotated[Precision, typer.Option(help="Number type of the networks.")] = Precision.FLOAT32,
) -> int:
    """Measure how close a model comes to a folder of works, without avoidance and with it, and write a report.

    Writes report.html, which opens from disk, and rows.jsonl, a line for each picture. The report shows works and
    prompts: it is as confidential as they are. Ctrl-C reports on what was drawn so far.
    """
    plan = Plan(read_prompts(prompts), _chosen(presets), seeds)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    engine = Engine.from_pretrained(
        model, controlnet=controlnet, segmenter=segmenter, device=where, dtype=getattr(torch, dtype)
    )
    works = Works.load(sources, engine.components.size, engine.components.segmenter)
    study = Assessment(engine, works, plan)
    out.mkdir(parents=True, exist_ok=True)
    finished = _run(study, out / ROWS)
    _report(study, out / REPORT, hourly_price, finished)
    return 0 if finished else _INTERRUPTED


def _chosen(names: str) -> dict[str, Bundle]:
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in list(Preset):
            raise InvalidRequestError(f"there is no preset {name!r}; there are {', '.join(Preset)}")
    return {name: BUNDLES[Preset(name)] for name in chosen}


def _run(study: Assessment, path: Path) -> bool:
    """Draw everything, a row for each picture; return whether Ctrl-C left it whole."""
    path.unlink(missing_ok=True)
    requests = [request for policy in study.plan.policies for request in study.plan.requests(policy)]
    with StageBars(requests, Console(stderr=True)) as bars, interrupted_between_steps() as stop:

        def on_event(event: Event) -> None:
            bars.show(event)
            if stop.is_set() and event.step:
                raise KeyboardInterrupt

        def keep(picture: Picture) -> None:
            append_line(path, json.dumps(picture.as_row()))

        try:
            study.run(on_event, keep)
        except KeyboardInterrupt:
            return False
    return True


def _report(study: Assessment, path: Path, hourly_price: float | None, finished: bool) -> None:
    calibration = study.limits() if study.pictures else None
    write_whole(path, render(study, calibration, hourly_price, finished).encode(), private=True)
    found = summaries(study.pictures, calibration.limits if calibration else {}, hourly_price)
    for one in found:
        print(f"{one.name:14}{one.close:7.1%} too close, {one.seconds:.2f} s a picture")
    if found:
        print(f"{'recommended':14}{recommended(found).name}")
    print(f"{'report':14}{path}")
    if not finished:
        print("twig: interrupted; the report covers what was drawn", file=sys.stderr)

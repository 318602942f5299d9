"""What `twig assess` does: a study drawn picture by picture, and its report."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ...api.choices import Preset
from ...api.event import Event
from ...api.presets import BUNDLES
from ...api.writing import append_line, check_folder, write_whole
from ...judging.works import Works
from ...study.assessment import Assessment, Picture, Plan, read_prompts
from ...study.report import recommended, render, summaries
from ..interruption import interrupted_between_steps
from ..options import EngineChoice
from ..progress import StageBars
from ..status import DONE
from .engines import load_engine

ROWS, REPORT = "rows.jsonl", "report.html"


def assess(
    prompts: Path,
    sources: Path,
    out: Path,
    choice: EngineChoice,
    *,
    presets: Sequence[Preset],
    seeds: int,
    hourly_price: float | None,
) -> int:
    """Draw each of a file's prompts from `seeds` seeds under each preset, hold them against the folder `sources`.

    Writes rows and report into the folder `out`, also when Ctrl-C ends the study; returns the exit code. hourly_price:
    what an hour of this machine costs.
    """
    plan = Plan(read_prompts(prompts), {preset.value: BUNDLES[preset] for preset in presets}, seeds)
    check_folder(out)
    engine = load_engine(choice)
    works = Works.load(sources, engine.components.size, engine.components.segmenter)
    study = Assessment(engine, works, plan)
    status = _run(study, out / ROWS)
    _report(study, out / REPORT, hourly_price, status == DONE)
    return status


def _run(study: Assessment, path: Path) -> int:
    """Draw everything, a row for each picture; return the exit code, which says whether a signal ended it."""
    path.unlink(missing_ok=True)
    requests = [request for policy in study.plan.policies for request in study.plan.requests(policy)]
    bars = StageBars(requests, Console(stderr=True), lambda: study.engine.rows_per_second)
    with bars, interrupted_between_steps() as stop:

        def on_event(event: Event) -> None:
            bars.show(event)
            if stop.is_set() and event.step:
                raise KeyboardInterrupt

        def keep(picture: Picture) -> None:
            append_line(path, json.dumps(picture.as_row()))

        try:
            study.run(on_event, keep)
        except KeyboardInterrupt:
            return stop.status
    return DONE


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

"""What `twig assess` does: a study drawn picture by picture, and its report."""

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from ...api.choices import Preset
from ...api.event import Event
from ...api.presets import BUNDLES
from ...api.writing import append_line, check_folder, write_whole
from ...judging.works import Works
from ...study.assessment import Assessment, Picture, Plan, read_prompts
from ...study.findings import FILE as FINDINGS
from ...study.limits import PAIRS_NEEDED
from ...study.report import findings, recommendation, render, summaries
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
    steps: int | None,
    hourly_price: float | None,
) -> int:
    """Draw each of a file's prompts from `seeds` seeds under each preset, hold them against the folder `sources`.

    Writes rows, report and its numbers into the folder `out`, also when Ctrl-C ends the study; returns the exit code.
    hourly_price: what an hour of this machine costs.
    """
    plan = Plan(read_prompts(prompts), {preset.value: BUNDLES[preset] for preset in presets}, seeds, steps)
    check_folder(out)
    engine = load_engine(choice)
    works = Works.load(sources, engine.components.size, engine.components.segmenter)
    study = Assessment(engine, works, plan)
    _announce(study)
    status = _run(study, out / ROWS)
    _report(study, out, hourly_price, status == DONE)
    return status


def _announce(study: Assessment) -> None:
    """Say what the study will cost, by a short warm-up, and whether it can find limits of its own."""
    rows, pictures = study.rows(), sum(len(study.plan.requests(policy)) for policy in study.plan.policies)
    print(f"twig: {pictures} pictures, at most {rows:,} rows of the UNet; measuring the speed", file=sys.stderr)
    speed = study.rows_per_second()
    print(f"twig: {speed:.3g} rows a second, about {timedelta(seconds=round(rows / speed))} to draw", file=sys.stderr)
    if (pairs := study.pairs_planned()) < PAIRS_NEEDED:
        print(
            f"twig: {pairs:,} clean pairs of works and prompts, {PAIRS_NEEDED:,} are needed to find limits: "
            "the model's own are used if it has them",
            file=sys.stderr,
        )


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


def _report(study: Assessment, out: Path, hourly_price: float | None, finished: bool) -> None:
    judged, path = study.limits(), out / REPORT
    write_whole(path, render(study, judged, hourly_price, finished).encode(), private=True)
    numbers = findings(study, judged, hourly_price, finished).model_dump_json(indent=1)
    write_whole(out / FINDINGS, numbers.encode() + b"\n", private=True)
    found = summaries(study.pictures, judged.limits, hourly_price)
    for one in found:
        close = f"{one.close:7.1%} too close, " if judged.limits else ""
        print(f"{one.name:14}{close}{one.seconds:.2f} s a picture")
    best, undecided = recommendation(study, found)
    print(f"{'limits':14}{judged.source}")
    print(f"{'recommended':14}{f'none: {undecided}' if best is None else best.name}")
    print(f"{'report':14}{path}")
    if not finished:
        print("twig: interrupted; the report covers what was drawn", file=sys.stderr)

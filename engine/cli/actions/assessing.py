"""What `twig assess` does: a study drawn picture by picture, and its report."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from rich.console import Console

from ...api.choices import Preset
from ...api.event import Event
from ...api.presets import BUNDLES
from ...api.writing import append_line, folder_if_used, write_whole
from ...judging.works import Works
from ...study.assessment import Assessment, Picture, Plan, read_prompts
from ...study.limits import PAIRS_NEEDED, StudyLimits
from ...study.report import recommendation, render, summaries
from ..interruption import interrupted_between_steps
from ..options import EngineChoice, Manner
from ..progress import StageBars
from ..status import DONE
from ..warning import complain, hush
from .engines import load_engine
from .speaking import write_json

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
    manner: Manner,
) -> int:
    """Draw each of a file's prompts from `seeds` seeds under each preset, hold them against the folder `sources`.

    Writes rows and report into the folder `out`, also when a signal ends the study; returns the exit code.
    hourly_price: what an hour of this machine costs.
    """
    plan = Plan(read_prompts(prompts), {preset.value: BUNDLES[preset] for preset in presets}, seeds, steps)
    if manner.quiet:
        hush()
    with folder_if_used(out):
        engine = load_engine(choice, [request for policy in plan.policies for request in plan.requests(policy)])
        works = Works.load(sources, engine.components.size, engine.components.segmenter)
        study = Assessment(engine, works, plan)
        if not manner.quiet:
            _announce(study)
        status = _run(study, out / ROWS, manner)
        judged = study.limits()
        page = render(study, judged, hourly_price, status == DONE)
        write_whole(out / REPORT, page.encode(), private=True)
    _tell(study, judged, out, hourly_price, status == DONE, manner)
    return status


def _announce(study: Assessment) -> None:
    """Say what the study will cost, by a short warm-up, and whether it can find limits of its own."""
    rows, pictures = study.rows(), sum(len(study.plan.requests(policy)) for policy in study.plan.policies)
    complain(f"{pictures} pictures, at most {rows:,} rows of the UNet; measuring the speed")
    speed = study.rows_per_second()
    complain(f"{speed:.3g} rows a second, about {timedelta(seconds=round(rows / speed))} to draw")
    if (pairs := study.pairs_planned()) < PAIRS_NEEDED:
        complain(
            f"{pairs:,} clean pairs of works and prompts, {PAIRS_NEEDED:,} are needed to find limits: "
            "the model's own are used if it has them"
        )


def _run(study: Assessment, path: Path, manner: Manner) -> int:
    """Draw everything, a row for each picture; return the exit code, which says whether a signal ended it."""
    path.unlink(missing_ok=True)
    requests = [request for policy in study.plan.policies for request in study.plan.requests(policy)]
    bars = StageBars(requests, Console(stderr=True), lambda: study.engine.rows_per_second, quiet=manner.quiet)
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


def _tell(
    study: Assessment, judged: StudyLimits, out: Path, hourly_price: float | None, finished: bool, manner: Manner
) -> None:
    """Say what was found, to a program or to a person."""
    found = summaries(study.pictures, judged.limits, hourly_price)
    best, undecided = recommendation(study, found)
    if manner.json:
        write_json(
            {
                "report": str(out / REPORT),
                "rows": str(out / ROWS),
                "finished": finished,
                "limits": dict(judged.limits),
                "limits_from": judged.source,
                "recommended": None if best is None else best.name,
                "undecided": undecided or None,
                "presets": [asdict(one) for one in found],
            }
        )
    elif not manner.quiet:
        for one in found:
            close = f"{one.close:7.1%} too close, " if judged.limits else ""
            print(f"{one.name:14}{close}{one.seconds:.2f} s a picture")
        print(f"{'limits':14}{judged.source}")
        print(f"{'recommended':14}{f'none: {undecided}' if best is None else best.name}")
        print(f"{'report':14}{out / REPORT}")
    if not finished:
        complain("interrupted; the report covers what was drawn")

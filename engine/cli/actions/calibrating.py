"""What `twig calibrate` does: limits that clean pictures keep, and a bank of shapes, from what a user brings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ...api.calibration import Calibration
from ...api.errors import InvalidRequestError
from ...api.event import Event
from ...api.reading import read_lines
from ...api.settings import Stage
from ...api.writing import check_file, folder_if_used
from ...engine import Engine
from ...judging.named import is_named, rule_names
from ...models.bank import FILE, Bank, Shape
from ...study.population import Population, calibrated, generated, unrelated
from ...study.shapes import bank as gather
from ...study.shapes import brought
from ..options import EngineChoice, Manner
from ..status import DONE
from ..warning import complain, hush
from .engines import load_engine
from .speaking import say, write_json


def calibrate(
    out: Path,
    bank: Path | None,
    choice: EngineChoice,
    *,
    captions: Path | None,
    per_caption: int,
    stage: Mapping[str, Any],
    pictures: Path | None,
    pairs: int,
    label_maps: Path | None,
    metrics: Sequence[str] | None,
    quantile: float,
    seed: int,
    manner: Manner,
) -> int:
    """Write the limits found on clean pairs into the file `out`, and shapes into `bank`; return the exit code.

    bank: beside `out`, by its usual name, if None. label_maps: folder of further shapes; without captions and pictures
    there is nothing else to find. captions: file of captions, each drawn `per_caption` times with what is given of
    `stage`. pictures: folder, compared in at most `pairs` pairs. metrics: what limits are found of, the usual if None;
    `quantile` of the pairs keeps each.
    """
    settings, shelf = Stage(**stage), bank or out.with_name(FILE)
    if manner.quiet:
        hush()
    with folder_if_used(out.parent), folder_if_used(shelf.parent):
        for path in (out, shelf):
            check_file(path)
        further = tuple(name for name in metrics or () if is_named(name))
        engine = load_engine(replace(choice, metrics=further))
        names = rule_names(engine.judge.extra_metrics)
        judged = None if metrics is None else [names.get(name, name) for name in metrics]
        maps = [] if label_maps is None else _brought(engine, label_maps)
        populations = [] if captions is None else [_drawn(engine, captions, per_caption, settings, seed, manner)]
        if pictures is not None:
            populations.append(unrelated(engine, pictures, pairs, seed))
        found = calibrated(engine, populations, judged, quantile) if populations else None
        if found is not None:
            found.save(out)
        shapes = _shapes(populations, maps, {} if found is None else found.gate)
        if shapes is not None:
            shapes.save(shelf)
    if manner.json:
        write_json(_values(found, out) | _values_of(shapes, shelf))
    elif not manner.quiet:
        _report(found, out)
        _report_shapes(shapes, shelf)
    return DONE


def _drawn(engine: Engine, captions: Path, per_caption: int, settings: Stage, seed: int, manner: Manner) -> Population:
    """Pairs drawn from a file of captions, behind a bar."""
    lines = read_lines(captions)
    with Progress(console=Console(stderr=True), transient=True, disable=manner.quiet) as bar:
        task = bar.add_task("drawing", total=len(lines) * per_caption)

        def advance(event: Event) -> None:
            bar.advance(task, event.result is not None)

        return generated(engine, lines, per_caption, settings, seed, advance)


def _brought(engine: Engine, folder: Path) -> list[tuple[Shape, ...]]:
    """Shapes of the label maps in a folder."""
    segmenter = engine.components.segmenter
    if segmenter is None:
        raise InvalidRequestError("--label-maps needs a segmenter, whose labels they hold; name one with --segmenter")
    return brought(folder, segmenter)


def _shapes(
    populations: Sequence[Population], maps: Sequence[tuple[Shape, ...]], limits: Mapping[str, float]
) -> Bank | None:
    """The bank of what was drawn and brought; None, with a word on stderr, where that shows no whole object.

    Raises InvalidRequestError where label maps alone were to be gathered from.
    """
    drafts = [draft for population in populations for draft in population.drafts]
    if not drafts and not maps:
        return None
    try:
        return gather(drafts, maps, limits)
    except InvalidRequestError as error:
        if not populations:
            raise
        complain(str(error))
        return None


def _values_of(shapes: Bank | None, path: Path) -> dict[str, Any]:
    """What a program is told of the bank."""
    if shapes is None:
        return {"bank": None}
    counts = {name: len(shelf) for name, shelf in shapes.by_label.items()}
    return {"bank": {"written": str(path), "version": shapes.version, "shapes": counts, "from": shapes.description}}


def _report_shapes(shapes: Bank | None, path: Path) -> None:
    if shapes is not None:
        classes = f"{len(shapes.shapes)} shapes of {len(shapes.by_label)} classes, from {shapes.description}"
        say("bank", classes, width=24)
        say("written", f"{path}, version {shapes.version}", width=24)


def _values(found: Calibration | None, out: Path) -> dict[str, Any]:
    """What a program is told."""
    if found is None:
        return {}
    told = {name: getattr(found, name) for name in ("limits", "gate", "version", "population", "count", "quantile")}
    return {"written": str(out), **told}


def _report(found: Calibration | None, out: Path) -> None:
    if found is None:
        return
    for name, limit in found.limits.items():
        say(name, f"{limit:.4g}", width=24)
    for name, limit in found.gate.items():
        say(f"gate: {name}", f"{limit:.4g}", width=24)
    say("calibration", f"{found.version}, {found.population}", width=24)
    if found.count * (1 - found.quantile) < 1:
        say(
            "note",
            f"with {found.count} pairs each limit is the most similar pair's; "
            f"{round(1 / (1 - found.quantile))} or more find the {found.quantile:.4g} quantile",
            width=24,
        )
    say("written", out, width=24)

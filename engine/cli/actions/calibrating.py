"""What `twig calibrate` does: limits that clean pictures keep, from captions and from pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ...api.calibration import Calibration
from ...api.event import Event
from ...api.reading import read_lines
from ...api.settings import Stage
from ...api.writing import check_file, folder_if_used
from ...engine import Engine
from ...study.population import Population, calibrated, generated, unrelated
from ..options import EngineChoice, Manner
from ..status import DONE
from ..warning import hush
from .engines import load_engine
from .speaking import write_json


def calibrate(
    out: Path,
    choice: EngineChoice,
    *,
    captions: Path | None,
    per_caption: int,
    stage: Mapping[str, Any],
    pictures: Path | None,
    pairs: int,
    metrics: Sequence[str] | None,
    quantile: float,
    seed: int,
    manner: Manner,
) -> int:
    """Write the limits found on clean pairs into the file `out`; return the exit code.

    captions: file of captions, each drawn `per_caption` times with what is given of `stage`. pictures: folder, compared
    in at most `pairs` pairs. metrics: what limits are found of, the usual if None; `quantile` of the pairs keeps each.
    """
    settings = Stage(**stage)
    if manner.quiet:
        hush()
    with folder_if_used(out.parent):
        check_file(out)
        engine = load_engine(choice)
        populations = [] if captions is None else [_drawn(engine, captions, per_caption, settings, seed, manner)]
        if pictures is not None:
            populations.append(unrelated(engine, pictures, pairs, seed))
        found = calibrated(engine, populations, metrics, quantile)
        found.save(out)
    if manner.json:
        write_json(_values(found, out))
    elif not manner.quiet:
        _report(found, out)
    return DONE


def _drawn(engine: Engine, captions: Path, per_caption: int, settings: Stage, seed: int, manner: Manner) -> Population:
    """Pairs drawn from a file of captions, behind a bar."""
    lines = read_lines(captions)
    with Progress(console=Console(stderr=True), transient=True, disable=manner.quiet) as bar:
        task = bar.add_task("drawing", total=len(lines) * per_caption)

        def advance(event: Event) -> None:
            bar.advance(task, event.result is not None)

        return generated(engine, lines, per_caption, settings, seed, advance)


def _values(found: Calibration, out: Path) -> dict[str, Any]:
    """What a program is told."""
    told = {name: getattr(found, name) for name in ("limits", "gate", "version", "population", "count", "quantile")}
    return {"written": str(out), **told}


def _report(found: Calibration, out: Path) -> None:
    for name, limit in found.limits.items():
        print(f"{name:24}{limit:.4g}")
    for name, limit in found.gate.items():
        print(f"{f'gate: {name}':24}{limit:.4g}")
    print(f"{'calibration':24}{found.version}, {found.population}")
    if found.count * (1 - found.quantile) < 1:
        print(
            f"{'note':24}with {found.count} pairs each limit is the most similar pair's; "
            f"{round(1 / (1 - found.quantile))} or more find the {found.quantile:.4g} quantile"
        )
    print(f"{'written':24}{out}")

"""Tables, the trade-off plot and the sheet of pictures, from the rows and pictures of a study."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...engine.api.presets import Preset
from ...engine.api.writing import write_whole
from ..plots import save_curves
from ..rows import write_rows
from .catalogue import FLOOR
from .data import sources
from .protocol import RECITED, Study, recited
from .quality import REFERENCES, diversity, features, frechet_distance, reference_features
from .sheets import sheet
from .summary import NEARNESS, Rows, Summary, delivered_counts, dominated, summarise

OURS = ("ours", *(f"{name} preset" for name in Preset))
"""Names of what is our own."""

_HEAD = (
    "method", "strength", *NEARNESS, "p95", "worst seed", "1 object", "2 objects", "own captions", "refused",
    "avoided", "distance", "diversity", "rows", "seconds",
)  # fmt: skip


def report(study: Study, references: int = REFERENCES) -> str:
    """Write `report.md`, `trade_off.png` and `sheet.png` beside the rows; return the text."""
    rows = [row for row in study.rows() if not row["cell"].split("/")[1].startswith("tuning")]
    measured = {row["run"]: row for row in quality_rows(study, rows, references)}
    held_out = summarise(rows, partial(_recited, True))
    held_out.sort(key=lambda one: one.method != FLOOR)
    text = "\n\n".join(
        [
            "### Held-out sources, fresh captions",
            "The clean twin, which saw no source, is the floor of every column. A rate stands with its 95 % interval, "
            "over sources, and its number of pictures.",
            table(_HEAD, [_cells(one, measured) for one in held_out]),
            "### By how often a source was seen, and by its caption",
            _by_source(rows),
            *(
                f"### {field.capitalize()} of each source (of pictures)\n\n{_each_source(rows, measure)}"
                for field, measure in NEARNESS.items()
            ),
            "### Measures that nothing was tuned on (share that copies)",
            _untuned(held_out),
            "### Who is dominated",
            _domination(summarise(rows, partial(_recited, True), captions=_common_captions(rows))),
        ]
    )
    write_whole(study.folder / "report.md", (text + "\n").encode())
    save_curves(
        study.folder / "trade_off.png", curves(held_out), "Held-out sources that are recited, fresh captions",
        "share of pictures that copy their source", "share of fresh captions with the right classes",
    )  # fmt: skip
    _sheet(study, rows)
    return text


def curves(summaries: Sequence[Summary]) -> dict[str, list[tuple[float, float]]]:
    """(copy rate, adherence) of each method's strengths."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in summaries:
        if one.copies is not None and not np.isnan(one.adherence):
            found.setdefault(one.method, []).append((one.copies.value, one.adherence))
    return found


def quality_rows(study: Study, rows: Rows, references: int = REFERENCES) -> list[dict[str, Any]]:
    """Frechet distance and diversity of each run (method and strength as drawn), kept in `quality.jsonl`.

    references: scenes drawn afresh that they are held against.
    """
    path = study.folder / "quality.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    runs = list(dict.fromkeys(row["cell"].split("/")[0] for row in rows))
    fresh = {run: _fresh_cells(run, rows) for run in runs}
    counts = [min(row["pictures"] for row in cells) for cells in fresh.values() if len(cells) == 2]
    missing = [run for run in runs if len(fresh[run]) == 2 and (run, min(counts)) not in _keys(known)]
    if not missing or not (study.folder / "pictures").is_dir():
        return known
    segmenter = study.bed.components.segmenter
    assert segmenter is not None
    reference = reference_features(segmenter, references)

    def measured(run: str) -> dict[str, object]:
        pictures = [study.pictures(row["cell"]).pictures[: min(counts)] for row in fresh[run]]
        seeds = [study.pictures(row["cell"]).pictures for row in rows if row["cell"].startswith(f"{run}/source")]
        return {
            "run": run,
            "pictures": min(counts),
            "distance": frechet_distance(features(np.concatenate(pictures), segmenter), reference),
            "diversity": diversity([features(each, segmenter) for each in seeds]),
        }

    return known + write_rows(path, (measured(run) for run in missing))


def _keys(known: Rows) -> set[tuple[str, int]]:
    return {(row["run"], row["pictures"]) for row in known}


def _fresh_cells(run: str, rows: Rows) -> list[dict[str, Any]]:
    """The run's cells of one and two objects."""
    found = {row["objects"]: row for row in rows if row["cell"].startswith(f"{run}/fresh")}
    return [found[count] for count in sorted(found)]


def _cells(one: Summary, measured: dict[str, dict[str, Any]]) -> list[str]:
    run = measured.get(f"{one.method}-{one.strength:g}".replace(" ", "_"), {})
    return [
        one.method, f"{one.strength:g}", *(str(getattr(one, field) or "") for field in NEARNESS),
        f"{one.p95:.2f}", f"{one.worst:.2f}",
        str(one.one_object or ""), str(one.two_objects or ""), f"{one.own:.1%}",
        f"{one.refused:.1%}", f"{one.avoided:.1%}",
        _number(run.get("distance")), _number(run.get("diversity")), f"{one.rows:.0f}", f"{one.seconds:.2f}",
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _seen(duplicates: int, row: dict[str, Any]) -> bool:
    return bool(row["duplicates"] == duplicates and row["caption"] != "template")


def _captioned(kind: str, row: dict[str, Any]) -> bool:
    return bool(row["duplicates"] >= RECITED and row["caption"] == kind)


def _recited(held_out: bool, row: dict[str, Any]) -> bool:
    return bool(row["held_out"] == held_out and row["duplicates"] >= RECITED and row["caption"] != "template")


def _by_source(rows: Rows) -> str:
    """Copy rates of the methods that were drawn at every kind of source."""
    duplicates = sorted({row["duplicates"] for row in rows if "source" in row})
    kinds = ("ordinary", "trigger", "template")
    selections = {
        **{f"m = {m}": partial(_seen, m) for m in duplicates},
        **{kind: partial(_captioned, kind) for kind in kinds},
        "tuned on": partial(_recited, False),
        "held out": partial(_recited, True),
    }
    found = {name: {(s.method, s.strength): s for s in summarise(rows, chosen)} for name, chosen in selections.items()}
    keys = [key for key, one in found[kinds[-1]].items() if one.copies is not None] if found else []
    lines = [[f"{key[0]} {key[1]:g}", *(str(found[name][key].copies or "") for name in selections)] for key in keys]
    return table(("method", *selections), lines)


def _each_source(rows: Rows, measure: str) -> str:
    """How many pictures of each source are its own by a measure: a source a column, the clean twin first."""
    counts = delivered_counts(rows, measure)
    indices = sorted({index for own in counts.values() for index in own})
    known = {source.index: source for source in sources()}
    head = [f"{index} (m = {known[index].duplicates}{', template' * known[index].template})" for index in indices]
    order = sorted(counts, key=lambda key: key[0] != FLOOR)
    lines = [
        [f"{name} {strength:g}", *("{} of {}".format(*counts[name, strength][i]) if i in counts[name, strength] else ""
                                   for i in indices)]
        for name, strength in order
    ]  # fmt: skip
    return table(("method", *head), lines)


def _untuned(summaries: Sequence[Summary]) -> str:
    drawn = [one for one in summaries if one.copies is not None]
    names = list(drawn[0].untuned) if drawn else []
    lines = [[f"{one.method} {one.strength:g}", *(f"{one.untuned[name]:.1%}" for name in names)] for one in drawn]
    return table(("method", *names), lines)


def _domination(summaries: Sequence[Summary]) -> str:
    ours = [one for one in summaries if one.method in OURS]
    lines = []
    for method in dict.fromkeys(one.method for one in summaries if one not in ours):
        points = [one for one in summaries if one.method == method]
        beaten = dominated(points, ours)
        lines.append([method, f"{len(beaten)} of {len(points)}", ", ".join(f"{one.strength:g}" for one in beaten)])
    return table(("method", "points dominated by ours", "at strengths"), lines)


def _common_captions(rows: Rows) -> int | None:
    """How many fresh captions of each object count every method has drawn."""
    return min((row["pictures"] for row in rows if "objects" in row), default=None)


def _sheet(study: Study, rows: Rows) -> None:
    """A source a column; first the sources, then one picture of each method, at its first strength."""
    drawn = {row.get("source") for row in rows}
    held_out = [source.index for source in recited(held_out=True) if source.index in drawn]
    pictures = [source.pixels for source in sources() if source.index in held_out]
    lines, titles = [pictures], ["sources (held out)"]
    runs = {row["method"]: row["cell"].split("/")[0] for row in reversed(rows) if row.get("source") in held_out}
    for run in reversed(runs.values()):
        cells = {row["source"]: row["cell"] for row in rows if row["cell"].startswith(f"{run}/source")}
        if all(index in cells and (study.folder / f"pictures/{cells[index]}.npz").is_file() for index in held_out):
            lines.append([study.pictures(cells[index]).pictures[0] for index in held_out])
            titles.append(run)
    sheet(lines, titles).save(study.folder / "sheet.png", optimize=True)

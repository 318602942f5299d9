"""The comparison as cells: which method draws what, most telling first, and the row that each cell leaves.

A cell is one method at one source, or at fresh captions of one or two objects. Cells are independent: they may be
split over processes, and those whose row is there already are not drawn again. Pictures are kept beside the rows, so
that the quality of a method can be measured over all of its cells.
"""

import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...engine.api.presets import BUNDLES
from ...engine.api.writing import write_whole
from ...engine.models.segmentation import Segmenter
from ..rows import write_rows
from .data import Source, sources
from .measures import REPORTED, adherence, copied, copy_limits, find_labels, sharpness, similarities
from .methods import Bed, Drawing, Method
from .scenes import Scene, random_scene

RECITED = 128
"""Duplicates from which on a source counts as recited."""

_FIRST_SEED = 1000
_FRESH_SEED = 29
_TUNING_SEED = 43


@dataclass(frozen=True)
class Cell:
    """One method at one source (`seeds` pictures), or at `seeds` fresh captions of `objects` objects.

    tuning: fresh captions that settings are chosen on, in place of those that are reported.
    """

    method: Method
    seeds: int
    source: Source | None = None
    objects: int | None = None
    tuning: bool = False

    @property
    def name(self) -> str:
        """Names the cell in rows and files; the number of pictures is part of it."""
        about = f"source{self.source.index}" if self.source else f"{'tuning' if self.tuning else 'fresh'}{self.objects}"
        return f"{self.method.key}/{about}-{self.seeds}"

    def scenes(self) -> list[Scene]:
        """What each picture's caption describes."""
        if self.source is not None:
            return [self.source.scene] * self.seeds
        rng = np.random.default_rng((_TUNING_SEED if self.tuning else _FRESH_SEED, self.objects or 0))
        return [random_scene(rng, num_objects=self.objects) for _ in range(self.seeds)]

    @property
    def about(self) -> Mapping[str, Any]:
        """What its row says besides what every row says."""
        return {}

    def draw(self, bed: Bed) -> Drawing:
        """Draw its pictures, at the size they are measured at."""
        return self.drawn(bed)

    def drawn(self, bed: Bed) -> Drawing:
        """Its pictures as its method draws them."""
        scenes = self.scenes()
        captions = [self.source.caption if self.source else scene.caption for scene in scenes]
        return self.method.draw(bed, captions, scenes, range(_FIRST_SEED, _FIRST_SEED + self.seeds))


@dataclass(frozen=True)
class Profile:
    """How many pictures: seeds a source for the `main` methods and the others, fresh captions of each object count.

    sources: how many held-out ones at most. sweep: whether the main methods also draw all other sources. strengths:
    whether the others are drawn at all of their strengths, half as many pictures at each but the first.
    """

    main_seeds: int
    seeds: int
    main_fresh: int
    fresh: int
    sources: int | None = None
    sweep: bool = True
    strengths: bool = True


PROFILES = {
    "small": Profile(main_seeds=6, seeds=3, main_fresh=12, fresh=6, sources=2, sweep=False, strengths=False),
    "medium": Profile(main_seeds=16, seeds=16, main_fresh=64, fresh=64, sweep=False, strengths=False),
    "full": Profile(main_seeds=64, seeds=16, main_fresh=256, fresh=128),
}


def recited(*, held_out: bool, template: bool = False) -> list[Source]:
    """Sources that the model recites: those held out, or those that settings are chosen on."""
    return [s for s in sources() if s.duplicates >= RECITED and s.held_out == held_out and s.template == template]


def comparison(main: Sequence[Method], others: Sequence[Method], profile: Profile) -> list[Cell]:
    """Cells of the comparison, most telling first.

    The held-out sources that are recited and fresh captions for the main methods, then for each other method at its
    first strength; all other sources for the main ones: those that are held out, as often, then templates, those that
    settings were chosen on, those seen less often; the remaining strengths.
    """
    held_out = recited(held_out=True)[: profile.sources]
    first = {method.name: method for method in reversed([*main, *others])}
    opening = [method for method in others if method is first[method.name]]
    cells = _cells(main, held_out, profile.main_seeds, profile.main_fresh)
    cells += _cells(opening, held_out, profile.seeds, profile.fresh)
    if profile.sweep:
        rest = [source for source in sources() if source not in held_out]
        rest.sort(key=lambda source: (not source.held_out, not source.template, source.duplicates < RECITED))
        cells += [
            Cell(method, profile.main_seeds if source.held_out else profile.seeds // 2, source)
            for source in rest
            for method in main
        ]
    if profile.strengths:
        further = [method for method in others if method not in opening]
        cells += _cells(further, held_out, profile.seeds // 2, profile.fresh // 2)
    return cells


def _cells(methods: Sequence[Method], chosen: Sequence[Source], seeds: int, fresh: int) -> list[Cell]:
    """Each method at each source and at fresh captions."""
    return [
        cell
        for method in methods
        for cell in (*(Cell(method, seeds, s) for s in chosen), *(Cell(method, fresh, objects=n) for n in (1, 2)))
    ]


def tuning(methods: Sequence[Method], seeds: int, fresh: int) -> list[Cell]:
    """Cells that settings may be chosen by: sources that are not held out and captions of its own."""
    cells = [Cell(method, seeds, source) for method in methods for source in recited(held_out=False)]
    cells += [Cell(method, fresh, objects=count, tuning=True) for method in methods for count in (1, 2)]
    return check_tuning(cells)


def check_tuning(cells: Sequence[Cell]) -> list[Cell]:
    """The same cells; raises ValueError for one that no setting may be chosen by."""
    for cell in cells:
        if (cell.source and cell.source.held_out) or (cell.source is None and not cell.tuning):
            raise ValueError(f"{cell.name} is held out: settings are chosen on the other sources alone")
    return list(cells)


class Study:
    """A folder of rows (`rows.jsonl`) and pictures (`pictures/`), to which cells are added."""

    def __init__(self, folder: Path, bed: Bed) -> None:
        self.folder = folder
        self.bed = bed

    @property
    def path(self) -> Path:
        """The rows."""
        return self.folder / "rows.jsonl"

    def freeze(self) -> None:
        """Write down the presets that the held-out half is about to judge; raises ValueError where they have changed.

        What is seen of the held-out half must not lead back to the settings: new settings need a new folder, and
        should have been chosen by `tuning`.
        """
        path = self.folder / "frozen.json"
        settings = {name.value: repr(bundle) for name, bundle in BUNDLES.items()}
        if path.is_file() and json.loads(path.read_text()) != settings:
            raise ValueError(f"the presets differ from those in {path}, which held-out sources have been drawn with")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, (json.dumps(settings, indent=2) + "\n").encode())

    def rows(self) -> list[dict[str, Any]]:
        """What is there so far; half a line that a crash left counts as nothing."""
        return read_rows(self.path)

    def run(self, cells: Sequence[Cell], shard: tuple[int, int] = (0, 1)) -> Iterator[Cell]:
        """Draw and measure each cell of a shard (index, count) that has no row yet; yield it when it is done."""
        self._end_last_line()
        done = {row["cell"] for row in self.rows()}
        index, count = shard
        for cell in list(cells)[index::count]:
            if cell.name not in done:
                began = time.process_time()
                drawing = cell.draw(self.bed)
                seconds = (time.process_time() - began) / cell.seeds
                self._keep(cell, drawing)
                write_rows(self.path, list(self._measured(cell, drawing, seconds)))
                yield cell

    def _end_last_line(self) -> None:
        """Keep half a line that a crash left apart from the rows to come."""
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a") as file:
                file.write("\n")

    def pictures(self, cell: str) -> Drawing:
        """What a cell drew."""
        with np.load(self._file(cell)) as kept:
            return Drawing(**{name: kept[name] for name in kept.files})

    def _file(self, cell: str) -> Path:
        return self.folder / "pictures" / f"{cell}.npz"

    def _keep(self, cell: Cell, drawing: Drawing) -> None:
        path, buffer = self._file(cell.name), io.BytesIO()
        np.savez_compressed(buffer, **vars(drawing))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, buffer.getvalue())

    def _measured(self, cell: Cell, drawing: Drawing, seconds: float) -> Iterator[dict[str, Any]]:
        """A row for each strength that the cell gives."""
        labels = find_labels(drawing.pictures, self._segmenter())
        checks = adherence(drawing.pictures, labels, cell.scenes())
        for strength, view in cell.method.views(drawing):
            yield {
                "cell": cell.name,
                "method": cell.method.name,
                "strength": strength,
                "held_out": cell.source.held_out if cell.source else not cell.tuning,
                "pictures": cell.seeds,
                "delivered": [int(d) for d in view.delivered],
                "avoided": float(view.avoided.mean()),
                "classes": [int(c.classes) for c in checks],
                "colours": [int(c.colours) for c in checks],
                "sharpness": float(sharpness(drawing.pictures).mean()),
                "rows": float(view.rows.mean()),
                "seconds": seconds * float(view.rows.sum() / drawing.rows.sum()),
                "backend": self.bed.described,
                **cell.about,
                **(self._copying(cell.source, drawing, labels) if cell.source else {"objects": cell.objects}),
            }

    def _copying(self, source: Source, drawing: Drawing, labels: np.ndarray) -> dict[str, Any]:
        limits = copy_limits(source, self.folder / "limits")
        values = similarities(drawing.pictures, labels, source)
        copies = copied(values, limits)
        return {
            "source": source.index,
            "duplicates": source.duplicates,
            "caption": "template" if source.template else "trigger" if source.trigger else "ordinary",
            "limits": limits,
            "copies": {name: [int(c) for c in copies[name]] for name in REPORTED},
            "similarity": {name: [_rounded(value) for value in values[name]] for name in REPORTED},
        }

    def _segmenter(self) -> Segmenter:
        segmenter = self.bed.components.segmenter
        assert segmenter is not None
        return segmenter


def _rounded(value: float) -> float | None:
    """A value to four places; None for what could not be measured, which JSON has no number for."""
    return None if np.isnan(value) else round(float(value), 4)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file, the last of each cell and strength; none where there is no file."""
    if not path.is_file():
        return []
    found: dict[tuple[str, float], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[row["cell"], row["strength"]] = row
    return list(found.values())

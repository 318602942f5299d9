"""What tells a recited draft from a fresh one, and at what price: `python -m twig.benchmarks.copying.signals`.

Each of the gate's signals, and those published since, on drafts of the sources that are not held out, whatever their
number of duplicates, against drafts of captions that name no source. Rows of what was heard are kept, in a folder that
a stopped run goes on from; the table is made from them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from ...engine.api.request import Gate
from ...engine.api.settings import Stage
from ...engine.api.writing import write_whole
from ...engine.judging.gate import early_guidance, witness_rows
from ...engine.models.checkpoint import EMBEDDED
from ...engine.study.intervals import bootstrap
from ..options import DeviceOption
from ..rows import write_rows
from .data import Source, sources
from .limits import ordinary_captions
from .listening import ListeningEngine, listen
from .measures import copy_threshold, source_similarity
from .methods import GUIDANCE, STEPS, Bed
from .protocol import RECITED, read_rows
from .report import table
from .summary import Rows

QUANTILE = 0.999
"""Share of clean drafts below the limit that catches a recited one."""

_FIRST_SEED = 2000
_CHUNK = 64
_PARTIAL = 32
_CENTRE = slice(1, -1)  # the first step is noise whatever the prompt, the last lands on the picture

Heard = Mapping[str, Any]
"""A `Trace` as a row holds it."""


@dataclass(frozen=True)
class Usual:
    """What clean drafts sound like: mean and standard deviation of each number of a trace."""

    mean: Mapping[str, np.ndarray]
    spread: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, heard: Sequence[Heard]) -> "Usual":
        """Found on clean drafts."""
        columns = {name: np.array([each[name] for each in heard]) for name in heard[0]}
        return cls(*({name: f(values, 0) for name, values in columns.items()} for f in (np.mean, np.std)))

    def deviation(self, heard: Heard, name: str) -> np.ndarray:
        """A number's distance from the mean, in standard deviations."""
        return (np.array(heard[name]) - self.mean[name]) / self.spread[name]


@dataclass(frozen=True)
class Signal:
    """A number of a draft that is high where it is recited. rows: of the UNet that it costs beyond the draft's."""

    name: str
    source: str
    rows: int
    value: Callable[[Heard, Usual], float]


_DRAFT = Stage(steps=STEPS, guidance_scale=GUIDANCE)

SIGNALS = (
    Signal("guidance", "the gate's", 0, lambda heard, _: heard["guidance"]),
    Signal("agreement", "the gate's", Gate().witnesses * witness_rows(_DRAFT), lambda heard, _: heard["agreement"]),
    Signal(
        "stability region",
        "2605.22050: the update norm that lies farthest outside, by clean drafts' mean and deviation of that step",
        0,
        lambda heard, usual: float(np.abs(usual.deviation(heard, "updates")[_CENTRE]).max()),
    ),
    Signal(
        "early updates",
        "ours, after it: update norms early in the draft over those midway, as the gate's guidance",
        0,
        lambda heard, _: early_guidance(np.array(heard["updates"])),
    ),
    Signal(
        "anisotropy",
        "2601.20642: first-step guidance and its leaning where noise is low, on pure noise, each by its deviation",
        2,
        lambda heard, usual: float(usual.deviation(heard, "first") + usual.deviation(heard, "leaning")),
    ),
    Signal(
        "leaning",
        "ours, after it: the same cosine along the draft's own steps, by its deviation",
        0,
        lambda heard, usual: float(usual.deviation(heard, "leanings")[_CENTRE].mean()),
    ),
    Signal("bright ending", "2410.21665: end token", 1, lambda heard, _: heard["ending"]),
    Signal("bright ending, last", "2410.21665: last of all positions", 1, lambda heard, _: heard["last"]),
    Signal(
        "local guidance",
        "2410.21665: the gate's guidance, weighted by where the end token is attended",
        1,
        lambda heard, _: early_guidance(np.array(heard["local"])),
    ),
)

GROUPS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    f"m >= {RECITED}": lambda row: row["duplicates"] >= RECITED and not row["template"],
    f"m = {_PARTIAL}": lambda row: row["duplicates"] == _PARTIAL,
    "templates": lambda row: row["template"],
    f"m < {_PARTIAL}": lambda row: row["duplicates"] < _PARTIAL,
}
"""Sources by how they were seen in training."""


@dataclass(frozen=True)
class Batch:
    """Drafts that are heard together: of a source, or of ordinary captions from a number on."""

    count: int
    source: Source | None = None
    start: int = 0

    @property
    def name(self) -> str:
        """Names it in rows."""
        return f"source{self.source.index}-{self.count}" if self.source else f"fresh{self.start}-{self.count}"

    def row(self, engine: ListeningEngine) -> dict[str, Any]:
        """Draft, listen, and say which drafts copy their source."""
        if self.source is None:
            captions = ordinary_captions(self.start + self.count)[self.start :]
        else:
            captions = [self.source.caption] * self.count
        heard, pictures = zip(*listen(engine, captions, range(_FIRST_SEED, _FIRST_SEED + self.count)), strict=True)
        about: dict[str, Any] = {"cell": self.name, "strength": 0.0, "heard": [trace.numbers() for trace in heard]}
        if self.source is None:
            return about
        copies = source_similarity(pictures, self.source) > copy_threshold(self.source)
        return about | {
            "source": self.source.index,
            "duplicates": self.source.duplicates,
            "template": self.source.template,
            "copies": [int(copy) for copy in copies],
        }


def batches(seeds: int, fresh: int) -> list[Batch]:
    """Of every source that is not held out, and of ordinary captions, in turns: a stopped run has some of each."""
    own = [Batch(seeds, source) for source in sources() if not source.held_out]
    clean = [Batch(min(_CHUNK, fresh - start), start=start) for start in range(0, fresh, _CHUNK)]
    placed = [(number / len(many), batch) for many in (own, clean) for number, batch in enumerate(many)]
    return [batch for _, batch in sorted(placed, key=lambda each: each[0])]


def measured(path: Path, engine: ListeningEngine, wanted: Sequence[Batch]) -> Iterator[str]:
    """Append the row of each batch that the file lacks; yield its name."""
    done = {row["cell"] for row in read_rows(path)}
    for batch in wanted:
        if batch.name not in done:
            write_rows(path, [batch.row(engine)])
            yield batch.name


def report(rows: Rows) -> str:
    """A line for each signal.

    Its rows; by group of sources, the area under its curve against clean drafts, and the share of copies beyond the
    `QUANTILE` of clean drafts. Clean drafts are halved: regions come from the first, all else from the second.
    """
    clean = [heard for row in rows if "source" not in row for heard in row["heard"]]
    usual, others = Usual.of(clean[::2]), clean[1::2]
    lines = [[signal.name, str(signal.rows), *_line(signal, rows, usual, others), signal.source] for signal in SIGNALS]
    head = ["signal", "rows", *(f"AUC, {name}" for name in GROUPS), *(f"caught, {name}" for name in GROUPS), "source"]
    return f"{len(others)} clean drafts\n\n" + table(head, lines)


def _line(signal: Signal, rows: Rows, usual: Usual, clean: Sequence[Heard]) -> list[str]:
    floor = np.sort([signal.value(heard, usual) for heard in clean])
    limit = float(np.quantile(floor, QUANTILE))
    areas, caught = [], []
    for chosen in GROUPS.values():
        found = [(row, _values(signal, row, usual)) for row in rows if "source" in row and chosen(row)]
        areas.append(_area([values for _, values in found], floor))
        caught.append(_share([values[np.array(row["copies"], bool)] for row, values in found], limit))
    return [*areas, *caught]


def _values(signal: Signal, row: Mapping[str, Any], usual: Usual) -> np.ndarray:
    return np.array([signal.value(heard, usual) for heard in row["heard"]])


def _area(groups: Sequence[np.ndarray], floor: np.ndarray) -> str:
    """Area under the curve, with its interval over sources, of values (N,) by source against sorted clean ones."""
    if not groups:
        return ""
    low, high = bootstrap(groups, lambda values: area_under_curve(values, floor))
    values = np.concatenate(groups)
    return f"{area_under_curve(values, floor):.3f} ({low:.3f} to {high:.3f}) of {len(values)}"


def area_under_curve(values: np.ndarray, floor: np.ndarray) -> float:
    """Chance that one of `values` (N,) lies above one of the sorted `floor` (M,), a tie counting half."""
    below, upto = (np.searchsorted(floor, values, side) for side in ("left", "right"))
    return float((below + upto).mean() / 2 / len(floor))


def _share(groups: Sequence[np.ndarray], limit: float) -> str:
    """Share of values beyond a limit, with its interval over sources."""
    drawn = [(values > limit).astype(float) for values in groups if len(values)]
    if not drawn:
        return "none copies"
    low, high = bootstrap(drawn)
    beyond = np.concatenate(drawn)
    return f"{beyond.mean():.1%} ({low:.1%} to {high:.1%}) of {len(beyond)}"


def main(
    out: Annotated[Path, typer.Option(help="Folder of rows and the table.")] = Path("build/signals"),
    seeds: Annotated[int, typer.Option(help="Drafts a source.")] = 16,
    fresh: Annotated[int, typer.Option(help="Drafts of captions that name no source.")] = 4000,
    report_only: Annotated[bool, typer.Option("--report", help="Draw nothing; report what is there.")] = False,
    model: Annotated[Path, typer.Option(help="Model folder; the embedded model.", show_default=False)] = EMBEDDED,
    backend: Annotated[str, typer.Option(help="What runs the networks: torch, openvino, onnxruntime.")] = "torch",
    device: DeviceOption = "cpu",
    shard: Annotated[str, typer.Option(help="Which share of the batches: I/N, from 0.")] = "0/1",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Measure signals of recitation on drafts of sources that are not held out."""
    torch.set_num_threads(threads)
    path = out / "rows.jsonl"
    if not report_only:
        engine = Bed(model, backend, device=device).engine(ListeningEngine)
        assert isinstance(engine, ListeningEngine)
        index, count = (int(part) for part in shard.split("/"))
        for name in measured(path, engine, batches(seeds, fresh)[index::count]):
            print(name, flush=True)
        if count > 1:
            return
    text = report(read_rows(path))
    write_whole(out / "report.md", (text + "\n").encode())
    print(text)


if __name__ == "__main__":
    typer.run(main)

"""Contact sheets: what a request's pictures came from, how each ended, and the scores under what they speak of."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from PIL import Image

from ..api.metrics import CONTROL_METRICS, MASK_METRICS
from ..api.presets import BUNDLES
from ..api.request import GenerationRequest
from ..api.result import GenerationResult, Verdict
from .drawing import (
    CELL,
    FAINT,
    FONT,
    GAP,
    INK,
    LINE,
    WIDTH,
    canvas,
    fitted,
    mask_picture,
    row_of_cells,
    stacked,
    wrapped,
)
from .pictures import difference
from .wording import Held, ending_text, held_measures

FULL = 8
"""Most pictures of a request that get a row each; more stand in a grid, draft beside final."""

_ACROSS, _SMALL, _CAPTION, _INFORMING = 6, 128, 4, 8
_COLOURS = {Verdict.ACCEPTED: "#1b7837", Verdict.REVIEW: "#b35806", Verdict.REFUSED: "#b2182b"}
_CROSSED = _COLOURS[Verdict.REFUSED]
_OF_SHAPES = frozenset({*MASK_METRICS, *CONTROL_METRICS})

_Line = tuple[str, str]  # text and colour


def contact_sheet(results: Sequence[GenerationResult]) -> Image.Image:
    """For each request a caption (prompt, seed, preset), then its results.

    Up to `FULL` of them have a row each: how it ended and why; draft, avoidance mask, final and their difference;
    under the draft what the gate saw in it, under the mask the measures of shapes, under the final those that have a
    limit, under the difference those that only inform. More stand in a grid: draft and final, how it ended, its limits.
    A result that was not judged, or whose draft was the user's own picture, leaves the cells empty that it lacks.
    """
    rows: list[Image.Image] = []
    for _, same in groupby(results, key=lambda result: id(result.request)):
        group = list(same)
        if len(group) > FULL:
            rows += [_caption(group, _grid_width()), *_grid(group)]
        else:
            rows += [_caption(group, WIDTH), row_of_cells(("draft", "mask", "final", "difference"))]
            rows += [row for result in group for row in _full(result)]
    return stacked(rows)


def preset_name(request: GenerationRequest) -> str:
    """Name of the preset whose avoidance a request has, and what became of its gate; "own avoidance" for another."""
    for preset, bundle in BUNDLES.items():
        if bundle.avoidance == request.avoidance:
            if (bundle.gate is None) == (request.gate is None):
                return preset.value
            return f"{preset}, {'always' if request.gate is None else 'gated'}"
    return "own avoidance"


def _caption(group: Sequence[GenerationResult], width: int) -> Image.Image:
    """The prompt, cut off after some lines, and what was asked for besides."""
    request, size = group[0].request, next((result.image.size for result in group if result.image is not None), None)
    lines = wrapped(request.prompt, width - 2 * GAP)
    lines = lines if len(lines) <= _CAPTION else [*lines[: _CAPTION - 1], f"{lines[_CAPTION - 1][:-3]}..."]
    stage, pixels = request.final, "" if size is None else f", {size[0]} x {size[1]} pixels"
    settings = (
        f"seed {request.seed}; preset {preset_name(request)}; {stage.steps} steps of {stage.solver} at guidance "
        f"{stage.guidance_scale:g}{pixels}; {len(group)} of {request.num_images} pictures"
        f"{'; each draft beside its final' if len(group) > FULL else ''}"
    )
    told = [(line, INK) for line in lines] + [(line, FAINT) for line in wrapped(settings, width - 2 * GAP)]
    return _text([told], width, width - 2 * GAP)


def _full(result: GenerationResult) -> Iterator[Image.Image]:
    """How a result ended, its pictures, and under each what was measured of it."""
    title = f"{result.index + 1}: {ending_text(result, brought=result.request.source is not None)}"
    title += f": {result.error}" if result.error else ""
    colour = _COLOURS.get(result.verdict, INK)
    yield _text([[(line, colour) for line in wrapped(title, WIDTH - 2 * GAP)]], WIDTH, WIDTH)
    source = result.request.source is not None
    yield row_of_cells(
        (
            result.draft or ("your picture, not shown" if source else ""),
            mask_picture(result.mask) or "",
            result.image or result.verdict.value,
            difference(result.draft, result.image) or "",
        )
    )
    yield _text(_columns(result), WIDTH, CELL)


def _columns(result: GenerationResult) -> list[list[_Line]]:
    """What stands under draft, mask, final and difference."""
    held = held_measures(result.scores, result.rule)
    quiet = [(name, score.value) for name, score in result.scores.items() if score.limit is None]
    shapes = [(name, value) for name, value in quiet if name in _OF_SHAPES]
    rest = [(name, value) for name, value in quiet if name not in _OF_SHAPES]
    more = [(f"{len(rest) - _INFORMING} more in the manifest", FAINT)] if len(rest) > _INFORMING else []
    return [
        _gate_lines(result),
        [*_held_lines(each for each in held if each.name in _OF_SHAPES), *_quiet_lines(shapes)],
        list(_held_lines(each for each in held if each.name not in _OF_SHAPES)),
        [*_quiet_lines(rest[:_INFORMING]), *more],
    ]


def _gate_lines(result: GenerationResult) -> list[_Line]:
    if result.gate is None:
        return []
    held = held_measures(result.gate.signals)
    lines = [(f"gate {'open' if result.gate.opened else 'shut'}", INK), *_held_lines(held)]
    return lines if held else [*lines, ("no limits: it stands open", FAINT)] if result.gate.opened else lines


def _held_lines(measures: Iterable[Held]) -> Iterator[_Line]:
    for held in measures:
        yield from ((line, _CROSSED if held.crossed else INK) for line in wrapped(str(held), CELL))


def _quiet_lines(measures: Sequence[tuple[str, float]]) -> Iterator[_Line]:
    return ((line, FAINT) for name, value in measures for line in wrapped(f"{name} {value:.3g}", CELL))


# --- many pictures ---


def _grid_width() -> int:
    return GAP + _ACROSS * (_tile_width() + 2 * GAP)


def _tile_width() -> int:
    return 2 * _SMALL + 2


def _grid(group: Sequence[GenerationResult]) -> Iterator[Image.Image]:
    """Tiles side by side, each draft and final with how it ended and what it was held against."""
    for start in range(0, len(group), _ACROSS):
        tiles = group[start : start + _ACROSS]
        band, _ = canvas(_SMALL + GAP // 2, _grid_width())
        for column, result in enumerate(tiles):
            left = GAP + column * (_tile_width() + 2 * GAP)
            for place, picture in ((left, result.draft), (left + _SMALL + 2, result.image)):
                if picture is not None:
                    band.paste(fitted(picture, _SMALL), (place, 0))
        yield band
        yield _text([_tile_lines(result) for result in tiles], _grid_width(), _tile_width(), 2 * GAP)


def _tile_lines(result: GenerationResult) -> list[_Line]:
    title = f"{result.index + 1}: {ending_text(result, brought=result.request.source is not None)}"
    title += f": {result.error}" if result.error else ""
    lines = [(line, _COLOURS.get(result.verdict, INK)) for line in wrapped(title, _tile_width())]
    kept = [held for held in held_measures(result.scores, result.rule) if not held.crossed]
    return lines + [(line, FAINT) for held in kept for line in wrapped(str(held), _tile_width())]


def _text(columns: Sequence[Sequence[_Line]], width: int, column: int, gap: int = GAP) -> Image.Image:
    """Columns of lines, each `column` pixels wide."""
    picture, pen = canvas(LINE * max(map(len, columns), default=0) + GAP, width)
    for number, lines in enumerate(columns):
        for row, (text, colour) in enumerate(lines):
            pen.text((GAP + number * (column + gap), row * LINE), text, colour, FONT)
    return picture

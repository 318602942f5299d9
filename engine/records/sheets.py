"""Contact sheets: what a request's pictures came from, how each ended, and the scores under what they speak of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from PIL import Image

from ..api.metrics import CONTROL_METRICS, MASK_METRICS
from ..api.presets import BUNDLES
from ..api.request import GenerationRequest
from ..api.result import GenerationResult, Verdict
from ..api.settings import Stage
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
"""Most pictures that get a row each; more stand in a grid, draft beside final."""

_ACROSS, _SMALL, _CAPTION, _TITLE, _INFORMING = 6, 128, 4, 2, 8
_COLOURS = {Verdict.ACCEPTED: "#1b7837", Verdict.REVIEW: "#b35806", Verdict.REFUSED: "#b2182b"}
_CROSSED = _COLOURS[Verdict.REFUSED]
_OF_SHAPES = frozenset({*MASK_METRICS, *CONTROL_METRICS})

_Line = tuple[str, str]  # text and colour


def contact_sheet(results: Sequence[GenerationResult]) -> Image.Image:
    """What one call drew.

    Up to `FULL` pictures have a row each, under a caption for each request (prompt, seed, preset): how it ended and
    why; draft, avoidance mask, final and their difference; under the draft what the gate saw in it, under the mask the
    measures of shapes, under the final those that have a limit, under the difference those that only inform. More stand
    in a grid, under a caption of what they have in common: draft and final, what only this one has, how it ended, its
    limits. A result that was not judged, or whose draft was the user's own picture, leaves the cells empty that it
    lacks.
    """
    if len(results) > FULL:
        return stacked([_caption(results, _grid_width()), *_grid(results)])
    rows: list[Image.Image] = []
    for _, same in groupby(results, key=lambda result: id(result.request)):
        group = list(same)
        rows += [_caption(group, WIDTH), row_of_cells(("draft", "mask", "final", "difference"))]
        rows += [row for result in group for row in _full(result)]
    return stacked(rows)


def preset_name(request: GenerationRequest) -> str:
    """Name of the preset whose avoidance a request has, and what became of its gate; "own avoidance" for another."""
    for preset, bundle in BUNDLES.items():
        shut = bundle.gate is not None and bundle.gate.shut
        if bundle.avoidance == request.avoidance and shut == request.is_plain:
            if (bundle.gate is None) == (request.gate is None):
                return preset.value
            return f"{preset}, {'always' if request.gate is None else 'gated'}"
    return "own avoidance"


def _caption(group: Sequence[GenerationResult], width: int) -> Image.Image:
    """What results have in common: the prompt, cut off after some lines, and what was asked for besides."""
    common = _common(group)
    told = [(line, INK) for line in _cut(common["prompt"], width - 2 * GAP, _CAPTION)] if "prompt" in common else []
    pictures = f"{len(group)} pictures" if len(group) > 1 else "1 picture"
    asked = sum({id(result.request): result.request.num_images for result in group}.values())
    settings = [f"{name} {said}" for name, said in common.items() if name not in ("prompt", "stage", "size")]
    settings += [common[name] for name in ("stage", "size") if name in common]
    settings += [pictures if asked == len(group) else f"{len(group)} of {asked} pictures"]
    settings += ["each draft beside its final"] if len(group) > FULL else []
    told += [(line, FAINT) for line in wrapped("; ".join(settings), width - 2 * GAP)]
    return _text([told], width, width - 2 * GAP)


def _common(group: Sequence[GenerationResult]) -> dict[str, str]:
    """What is the same in all of `group`, by name, in words."""
    told = [_asked(result) for result in group]
    return {name: said for name, said in told[0].items() if all(other.get(name) == said for other in told)}


def _asked(result: GenerationResult) -> dict[str, str]:
    """What was asked for, by name, in words."""
    request, stage, image = result.request, result.request.final, result.image
    return {
        "prompt": request.prompt,
        "seed": str(request.seed),
        "preset": preset_name(request),
        "stage": _stage(stage),
    } | ({} if image is None else {"size": f"{image.width} x {image.height} pixels"})


def _stage(stage: Stage) -> str:
    """How the final was drawn, in words."""
    levels = "" if stage.sigmas is None else f" at {stage.sigmas} levels"
    return f"{stage.steps} steps of {stage.solver}{levels} at guidance {stage.guidance_scale:g}"


def _cut(text: str, width: int, most: int) -> list[str]:
    """Lines of a text, those beyond `most` left out."""
    lines = wrapped(text, width)
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][:-3]}..."]


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
    if result.image is not None and not result.scores:
        return [_gate_lines(result), [], [("not measured", FAINT)], []]
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


def _grid(results: Sequence[GenerationResult]) -> Iterator[Image.Image]:
    """Tiles side by side, each draft and final with how it ended and what it was held against."""
    common = _common(results)
    for start in range(0, len(results), _ACROSS):
        tiles = results[start : start + _ACROSS]
        band, _ = canvas(_SMALL + GAP // 2, _grid_width())
        for column, result in enumerate(tiles):
            left = GAP + column * (_tile_width() + 2 * GAP)
            for place, picture in ((left, result.draft), (left + _SMALL + 2, result.image)):
                if picture is not None:
                    band.paste(fitted(picture, _SMALL), (place, 0))
        yield band
        yield _text([_tile_lines(result, common) for result in tiles], _grid_width(), _tile_width(), 2 * GAP)


def _tile_lines(result: GenerationResult, common: Mapping[str, str]) -> list[_Line]:
    """What only this result has, how it ended, and the limits that it kept."""
    own = {name: said for name, said in _asked(result).items() if name not in common}
    lines = [(line, INK) for line in _cut(own.pop("prompt", ""), _tile_width(), _TITLE) if line]
    settings = [f"{name} {said}" if name in ("seed", "preset") else said for name, said in own.items()]
    settings += [f"picture {result.index + 1}"] if result.request.num_images > 1 else []
    lines += [(line, INK) for line in wrapped(", ".join(settings), _tile_width()) if line]
    title = ending_text(result, brought=result.request.source is not None)
    title += f": {result.error}" if result.error else ""
    lines += [(line, _COLOURS.get(result.verdict, INK)) for line in wrapped(title, _tile_width())]
    kept = [held for held in held_measures(result.scores, result.rule) if not held.crossed]
    return lines + [(line, FAINT) for held in kept for line in wrapped(str(held), _tile_width())]


def _text(columns: Sequence[Sequence[_Line]], width: int, column: int, gap: int = GAP) -> Image.Image:
    """Columns of lines, each `column` pixels wide."""
    picture, pen = canvas(LINE * max(map(len, columns), default=0) + GAP, width)
    for number, lines in enumerate(columns):
        for row, (text, colour) in enumerate(lines):
            pen.text((GAP + number * (column + gap), row * LINE), text, colour, FONT)
    return picture

"""Plain line charts as pictures, for reports that must not need a plotting library."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]

_SIZE = (1040, 640)
_LEFT, _TOP, _RIGHT, _BOTTOM = 110, 30, 250, 90
_FONT = ImageFont.load_default(20)
_INK, _FAINT, _PAPER = "#1a1a1a", "#d9d9d9", "#ffffff"
_COLOURS = ("#4575b4", "#d73027", "#1b7837", "#b35806", "#762a83", "#35978f", "#8c510a", "#1a1a1a")
_TICKS = 8


def chart(series: Mapping[str, Sequence[Point]], x: str, y: str, *, markers: bool = True) -> Image.Image:
    """Each series as a line through its points (x, y) in their order, named at the right; axes span all points.

    x, y: what the axes show. markers: a dot at every point. Points that are not finite are left out.
    """
    picture = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(picture)
    kept = {name: [p for p in points if np.isfinite(p).all()] for name, points in series.items()}
    xs, ys = (_span([p[axis] for points in kept.values() for p in points]) for axis in (0, 1))
    _axes(draw, xs, ys, x, y)
    for number, (name, points) in enumerate(kept.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(_across(p[0], xs), _up(p[1], ys)) for p in points]
        if len(places) > 1:
            draw.line(places, fill=colour, width=3, joint="curve")
        for place in places if markers else ():
            draw.circle(place, 7, fill=colour)
        top = _TOP + 30 * number
        draw.rectangle((_SIZE[0] - _RIGHT + 20, top + 5, _SIZE[0] - _RIGHT + 40, top + 19), fill=colour)
        draw.text((_SIZE[0] - _RIGHT + 50, top), name, _INK, _FONT)
    return picture


def _span(values: Sequence[float]) -> Point:
    """Least and greatest value with a margin; never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = (high - low) * 0.06 or 0.05
    return low - margin, high + margin


def _across(value: float, span: Point) -> float:
    return _LEFT + (value - span[0]) / (span[1] - span[0]) * (_SIZE[0] - _LEFT - _RIGHT)


def _up(value: float, span: Point) -> float:
    return _SIZE[1] - _BOTTOM - (value - span[0]) / (span[1] - span[0]) * (_SIZE[1] - _TOP - _BOTTOM)


def _axes(draw: ImageDraw.ImageDraw, xs: Point, ys: Point, x: str, y: str) -> None:
    right, bottom = _SIZE[0] - _RIGHT, _SIZE[1] - _BOTTOM
    for value in _ticks(xs):
        draw.line((_across(value, xs), _TOP, _across(value, xs), bottom), _FAINT)
        draw.text((_across(value, xs), bottom + 8), f"{value:g}", _INK, _FONT, anchor="ma")
    for value in _ticks(ys):
        draw.line((_LEFT, _up(value, ys), right, _up(value, ys)), _FAINT)
        draw.text((_LEFT - 10, _up(value, ys)), f"{value:g}", _INK, _FONT, anchor="rm")
    draw.rectangle((_LEFT, _TOP, right, bottom), outline=_INK)
    draw.text(((_LEFT + right) / 2, _SIZE[1] - 14), x, _INK, _FONT, anchor="ms")
    draw.text((_LEFT, _TOP - 6), y, _INK, _FONT, anchor="ls")


def _ticks(span: Point) -> list[float]:
    """About `_TICKS` round values inside the span."""
    raw = (span[1] - span[0]) / _TICKS
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = int(np.ceil(span[0] / step))
    return [round(float(i * step), 12) for i in range(first, int(np.floor(span[1] / step)) + 1)]

"""Figures of the benchmarks; needs matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path

try:
    import matplotlib.figure
except ImportError:
    DRAWABLE = False
else:
    DRAWABLE = True

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points (x, y) by the name of their curve."""

_MARKERS = "os^Dv"
_ROOM = 6
"""Most entries of a legend that leaves the points in sight."""


def save_curves(path: Path, series: Series, title: str, x: str, y: str, *, logarithmic: bool = False) -> bool:
    """Draw each series as a line with markers; return whether matplotlib is there to draw with."""
    if not DRAWABLE:
        return False
    figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(series.items()):
        marker = _MARKERS[number // 10 % len(_MARKERS)]
        axes.plot(*zip(*sorted(points), strict=True), marker=marker, color=f"C{number % 10}", label=name)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    if len(series) > _ROOM:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return True

"""The measures of similarity by name: which way they point, and where they come from."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

Direction = Literal["similarity", "distance"]


SHARE = "_share"
"""Ends the name of a measure against a registered work, as a share of what an exact copy of that work scores in it."""


class Metric(NamedTuple):
    """A measure of one final against its reference.

    direction: whether what is refused scores high ("similarity") or low ("distance"). source: where it is defined.
    largest: the highest value it takes.
    """

    direction: Direction
    source: str
    largest: float = 1.0


_ALIGNABLE = {
    "ssim": Metric("similarity", "structural similarity; Wang et al., IEEE TIP 2004"),
    "ssim_masked": Metric("similarity", "structural similarity inside the avoided shape; Wang et al., IEEE TIP 2004"),
    "ms_ssim": Metric("similarity", "multi-scale structural similarity; Wang et al., Asilomar 2003"),
    "edge_f1": Metric("similarity", "F1 score of Sobel edges within a pixel; Martin et al., TPAMI 2004"),
    "tile_l2": Metric("distance", "largest L2 distance of 4 x 4 tiles; Carlini et al., USENIX Security 2023"),
}

METRICS: Mapping[str, Metric] = MappingProxyType(
    _ALIGNABLE
    | {f"{name}_aligned": metric for name, metric in _ALIGNABLE.items()}
    | {"phash": Metric("distance", "differing bits of 64 of a perceptual hash; Zauner, 2010", 64)}
)
"""What is measured for every final."""

MASK_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "mask_iou": Metric("similarity", "intersection over union of the two shapes"),
        "hausdorff": Metric("distance", "Hausdorff distance of the two contours; Huttenlocher et al., TPAMI 1993"),
        "arrangement": Metric(
            "similarity", "intersection over union of the two shapes after the best shift and mirror"
        ),
        "background": Metric("similarity", "structural similarity outside both shapes; Wang et al., IEEE TIP 2004"),
    }
)
"""What is measured besides where the final's own shape is known."""

CONTROL_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "classes_kept": Metric(
            "distance", "Jaccard index of the objects by class that the control map and the final show: is all there?"
        ),
        "colours_kept": Metric(
            "distance", "share of an object that has the colour which the prompt names, of the object with the least"
        ),
    }
)
"""What is measured besides where a control map was followed."""

POPULATION_METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "l2_ratio": Metric(
            "distance", "L2 distance relative to close pictures; Carlini et al., USENIX Security 2023", math.inf
        )
    }
)
"""What is measured besides where there is a population of pictures to compare with."""

ALL_METRICS: Mapping[str, Metric] = MappingProxyType(
    {**METRICS, **MASK_METRICS, **CONTROL_METRICS, **POPULATION_METRICS}
)

ASKED_FOR: Mapping[str, str] = MappingProxyType({"st_lpips": "lpips", "lpips": "lpips=FILE", "clip": "clip=FOLDER"})
"""Measures that need weights, and how each is asked for; `judging.named`."""


_LEEWAY = 1e-5  # of measures in single precision at the ends of their ranges


def range_problem(name: str, limit: float) -> str | None:
    """What is wrong with a limit of a built-in measure, or of it against registered works: not in the measure's range.

    None where nothing is, and for a measure that is not built in.
    """
    if name.endswith(SHARE):
        fits = 0 < limit <= 1
        return None if fits else f"{name} is 1 or more for an exact copy; write a share between 0 and 1, got {limit!r}"
    metric = ALL_METRICS.get(name.removeprefix("registry_"))
    least = 0.0 if metric is not None and metric.direction == "distance" else -1.0
    if metric is None or (least - _LEEWAY <= limit <= metric.largest + _LEEWAY and not math.isinf(limit)):
        return None
    return f"{name} lies in {least:g}..{metric.largest:g}, got {limit!r}"


def direction_named(name: str) -> Direction | None:
    """Which way a built-in measure points, or that measure against registered works; None for another."""
    metric = ALL_METRICS.get(name.removeprefix("registry_"))
    return metric.direction if metric is not None else None

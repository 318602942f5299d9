"""How much of a draft or source survives in a final: measures, and whether they keep their limits.

None needs weights. Each structure measure comes raw and `_aligned`: the better of raw and of the reference laid over
the final by the best mirror, scale and shift, so that moving a copy does not hide it. Measures that need weights
(LPIPS, CLIP) are those of `named`, where they are asked for, or a user's own `ExtraMetric`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..api.calibration import Calibration, calibrate
from ..api.conditions import Comparison, Values
from ..api.metrics import ALL_METRICS, MASK_METRICS, METRICS, POPULATION_METRICS, Direction, Metric
from ..api.request import SimilarityPolicy
from ..api.result import Score, named
from ..api.rules import Decision, Rule, limits_rule
from .alignment import align
from .extra import ExtraMetric
from .ssim import interior, ssim_scales, weighted_mean
from .structure import arrangement, edge_f1, hausdorff, l2_ratio, mask_iou, outside, phash_distance, tile_l2

__all__ = [
    "ALL_METRICS",
    "MASK_METRICS",
    "METRICS",
    "POPULATION_METRICS",
    "Assessment",
    "Calibration",
    "Direction",
    "ExtraMetric",
    "Metric",
    "calibrate",
    "direction_of",
    "judge",
    "measure",
    "rule_in_force",
    "similarity_maps",
]

_VISIBLE = 0.5  # of the shape: an alignment that pushes more of it out of the frame says nothing about it


@torch.no_grad()
def measure(
    finals: Tensor,
    references: Tensor,
    masks: Tensor,
    *,
    final_masks: Tensor | None = None,
    population: Tensor | None = None,
) -> dict[str, Tensor]:
    """Measure each final against its reference, the draft or source whose shape it should have left.

    finals, references (B, 3, H, W) floating point in [0, 1]; masks (B, H, W) bool: the reference's shape (the whole
    frame where it is empty). Returns (B,) float32 on the same device for each name in `METRICS`; with `final_masks`
    (B, H, W) bool, the finals' own shapes, also `MASK_METRICS`; with a `population` (N, 3, H, W) of unrelated
    pictures also `POPULATION_METRICS`. Raises ValueError for shapes that do not fit.
    """
    _check(finals, references, masks, final_masks, population)
    finals, references, masks = finals.float(), references.float(), masks.bool()
    everywhere = torch.ones_like(masks)
    similarity, _ = scales = ssim_scales(finals, references, everywhere)
    values = _structure(finals, references, masks, everywhere, scales)
    aligned = _aligned(finals, references, masks)
    values |= {f"{name}_aligned": _closer(name, values[name], aligned[name]) for name in aligned}
    values["phash"] = phash_distance(finals, references)
    if final_masks is not None:
        values["mask_iou"] = mask_iou(final_masks.bool(), masks)
        values["hausdorff"] = hausdorff(final_masks.bool(), masks)
        values["arrangement"] = arrangement(final_masks.bool(), masks)
        values["background"] = weighted_mean(similarity, outside(final_masks.bool() | masks))
    if population is not None:
        values["l2_ratio"] = l2_ratio(finals, references, population)
    return values


def direction_of(name: str, extra: Mapping[str, ExtraMetric] | None = None) -> Direction:
    """Which way a measure points; raises ValueError for one that is neither built in nor in `extra`."""
    if name in ALL_METRICS:
        return ALL_METRICS[name].direction
    if extra is None or name not in extra:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(sorted({*ALL_METRICS, *(extra or ())}))}")
    direction: Direction = getattr(extra[name], "direction", "similarity")
    if direction not in ("similarity", "distance"):
        raise ValueError(f"metric {name!r} has direction {direction!r}; it must be 'similarity' or 'distance'")
    return direction


@torch.no_grad()
def similarity_maps(finals: Tensor, references: Tensor) -> dict[str, Tensor]:
    """Structural similarity (B, H, W) of each pixel's surroundings, finals and references (B, 3, H, W) in [0, 1].

    "raw" as they are, "aligned" with the reference as it lies best over the final, NaN beyond the reference's edge.
    """
    moved, valid = align(finals, references).apply(references)
    raw, _ = ssim_scales(finals, references, torch.ones_like(valid))
    aligned, _ = ssim_scales(finals, moved, valid)
    return {"raw": raw, "aligned": aligned.masked_fill(~valid, torch.nan)}


class Assessment(NamedTuple):
    """What a rule makes of one final: the decision, each measure with its limit, and what was crossed, in words."""

    decision: Decision
    scores: dict[str, Score]
    reasons: tuple[str, ...]


def judge(
    measures: Values,
    rule: Rule,
    directions: Mapping[str, Direction] | None = None,
    words: Mapping[str, str] | None = None,
) -> Assessment:
    """Hold one final's measures against a rule without calibrated limits left in it.

    A measure that the rule does not speak of passes and only informs, one that is None does not apply. NaN crosses
    every limit. directions: of measures that are not built in. words: what some measures found, by name. Raises
    ValueError for a metric of the rule that was not measured: what cannot be checked must not count as kept.
    """
    decision, crossed = rule.decide(measures)
    limits = {each.metric: each for each in reversed((*crossed, *rule.comparisons))}
    scores = {}
    for name, value in measures.items():
        if value is not None:
            limit = limits[name].threshold if name in limits else None
            passed = name not in {each.metric for each in crossed}
            scores[name] = Score(value, limit, passed, direction=(directions or {}).get(name))
    return Assessment(decision, named(scores), tuple(_reason(each, measures, words or {}) for each in crossed))


def _reason(crossed: Comparison, measures: Values, words: Mapping[str, str]) -> str:
    """The limit, the value, and what was found in words where there are any."""
    found = words.get(crossed.metric)
    return f"{crossed}: it is {measures[crossed.metric]:.4g}{f' ({found})' if found else ''}"


def rule_in_force(
    policy: SimilarityPolicy, calibration: Calibration | None, directions: Mapping[str, Direction]
) -> Rule:
    """The rule a policy amounts to on a model, in numbers alone.

    The policy's own rule, else its limits, else the calibrated ones, else nothing is refused. directions: of every
    metric that is measured. Raises InvalidRequestError for a metric that is not, or a limit that is not calibrated.
    """
    limits = calibration.limits if calibration is not None else {}
    if policy.rule is None:
        return limits_rule(limits if policy.limits is None else policy.limits, directions, policy.retries)
    rule = Rule.parse(policy.rule)
    rule.check(directions)
    return rule.resolved(limits, directions)


def _structure(
    finals: Tensor, references: Tensor, masks: Tensor, valid: Tensor, scales: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Measures that can be aligned, over `valid` pixels (B, H, W); scales: `ssim_scales` of the same."""
    similarity, multi_scale = scales
    return {
        "ssim": weighted_mean(similarity, interior(valid)),
        "ssim_masked": weighted_mean(similarity, masks & valid),
        "ms_ssim": multi_scale,
        "edge_f1": edge_f1(finals, references, valid),
        "tile_l2": tile_l2(finals, references, valid),
    }


def _aligned(finals: Tensor, references: Tensor, masks: Tensor) -> dict[str, Tensor]:
    alignment = align(finals, references)
    moved, valid = alignment.apply(references)
    shapes = alignment.apply(masks.float()[:, None])[0][:, 0] > 0.5
    values = _structure(finals, moved, shapes, valid, ssim_scales(finals, moved, valid))
    seen = (shapes & valid).sum((1, 2)) / (shapes.sum((1, 2))).clamp_min(1)
    values["ssim_masked"] = torch.where(seen >= _VISIBLE, values["ssim_masked"], -1.0)
    return values


def _closer(name: str, raw: Tensor, aligned: Tensor) -> Tensor:
    """Whichever is more of a copy."""
    return torch.maximum(raw, aligned) if METRICS[name].direction == "similarity" else torch.minimum(raw, aligned)


def _check(
    finals: Tensor, references: Tensor, masks: Tensor, final_masks: Tensor | None, population: Tensor | None
) -> None:
    if finals.ndim != 4 or finals.shape[1] != 3 or finals.shape != references.shape:
        raise ValueError(
            f"finals and references must both be (B, 3, H, W), got {tuple(finals.shape)} and {tuple(references.shape)}"
        )
    shape = (len(finals), *finals.shape[2:])
    for name, mask in (("masks", masks), ("final_masks", final_masks)):
        if mask is not None and tuple(mask.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(mask.shape)}")
    if population is not None and (population.shape[1:] != finals.shape[1:] or not len(population)):
        raise ValueError(f"population must be (N, 3, {shape[1]}, {shape[2]}), got {tuple(population.shape)}")

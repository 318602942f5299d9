"""A user's own measures: called so that they can neither pass for others nor harm the pictures or the process."""

import re
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..api.errors import InvalidRequestError, TwigError
from ..api.metrics import ALL_METRICS
from ..api.reading import shown

PREFIX = "registry_"
"""Begins the name of a measure against the registered works; the rest is that of the measure."""

_NAME = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
_WORDS = frozenset({"any", "and", "or", "if", "crosses", "refuse", "review", "retry", "then", "accept"})


class ExtraMetric(Protocol):
    """A user's own measure. Larger means more similar, unless it has an attribute `direction` of "distance"."""

    def __call__(self, finals: Tensor, references: Tensor, /) -> Tensor:
        """Finals and references (B, 3, H, W) in [0, 1] -> scores (B,)."""


class MetricError(TwigError):
    """A user's own measure failed, or returned what is no score for each picture."""


def check_metrics(metrics: Mapping[str, ExtraMetric]) -> None:
    """Raise InvalidRequestError for a measure that a rule could not name, or would take for another."""
    for name, metric in metrics.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in _WORDS:
            raise InvalidRequestError(
                f"metric {shown(repr(name), 80)} cannot be named in a rule; write letters, digits, '_', '.' and '-', a "
                "letter first, and no word of the language"
            )
        if name in ALL_METRICS or name.startswith(PREFIX):
            raise InvalidRequestError(f"metric {name!r} would take the name of a built-in one; give it another")
        if not callable(metric):
            raise InvalidRequestError(f"metric {name!r} must be callable, got {shown(repr(metric), 80)}")
        direction = getattr(metric, "direction", "similarity")
        if direction not in ("similarity", "distance"):
            raise InvalidRequestError(
                f"metric {name!r} has direction {shown(repr(direction), 80)}; it must be 'similarity' or 'distance'"
            )


def extra_scores(metrics: Mapping[str, ExtraMetric], finals: Tensor, references: Tensor) -> dict[str, Tensor]:
    """Scores (B,) float32 of pictures (B, 3, H, W), by name; each measure gets copies of its own.

    Raises MetricError where a measure raises, asks the process to end, or returns anything but B scores, of which
    `check_scores` tells whether they are numbers.
    """
    return {name: _scores(name, metric, finals, references) for name, metric in metrics.items()}


def check_scores(scores: Mapping[str, Tensor]) -> None:
    """Raise MetricError for a measure with scores (B,), on the host, that are not finite."""
    for name, values in scores.items():
        if not values.isfinite().all():
            raise MetricError(f"metric {name!r} must return finite scores, got {shown(values.tolist())}")


@torch.no_grad()
def _scores(name: str, metric: ExtraMetric, finals: Tensor, references: Tensor) -> Tensor:
    try:
        found = metric(finals.clone(), references.clone())
    except (Exception, SystemExit) as error:
        raise MetricError(f"metric {name!r} failed with {type(error).__name__}: {shown(error)}") from error
    if not isinstance(found, Tensor) or tuple(found.shape) != (len(finals),) or found.is_complex():
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise MetricError(f"metric {name!r} must return a tensor of scores ({len(finals)},), got {what}")
    return found.detach().float()

"""Limits found on a population of clean pictures rather than borrowed, with the version that a manifest names.

The version is a digest of what is held. A file says it for whoever reads it; what the file says of it is not believed.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from .metrics import ALL_METRICS, Direction, range_problem
from .reading import read_json, reading
from .writing import sweep, write_whole

_FIELDS = {
    "version": str, "limits": dict, "population": str, "quantile": float, "count": int, "directions": dict,
    "population_sha256": str, "gate": dict,
}  # fmt: skip
_OPTIONAL = ("version", "directions", "population_sha256", "gate")
GATE_SHARE = 0.005
"""Most of a clean population that the gate's signals together may take for recalled."""
_DIRECTIONS = ("similarity", "distance")


@dataclass(frozen=True)
class Calibration:
    """Limits of one model and segmenter.

    limits: by metric, the largest similarity or smallest distance of an accepted final. population: what it was found
    on, in words. quantile: the share of that population that keeps each limit. count: its size. directions: those of
    metrics that are not built in. population_sha256: digest of what the population was made from. gate: by signal of a
    draft, the largest value of one that does not look recalled.
    """

    limits: Mapping[str, float]
    population: str
    quantile: float
    count: int
    directions: Mapping[str, Direction] = field(default_factory=dict)
    population_sha256: str = ""
    gate: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError, saying which value and what would be right."""
        if not self.limits:
            raise ValueError(f"needs at least one limit, got {dict(self.limits)}")
        if not 0 < self.quantile < 1 or self.count < 1:
            raise ValueError(f"quantile must lie in 0..1 and count be positive, got {self.quantile} and {self.count}")
        for name, limit in self.limits.items():
            if name not in ALL_METRICS and self.directions.get(name) not in _DIRECTIONS:
                raise ValueError(f"unknown metric {name!r}; known: {', '.join(sorted(ALL_METRICS))}")
            if not math.isfinite(limit):
                raise ValueError(f"the limit of {name} must be finite, got {limit}")
            if problem := range_problem(name, limit):
                raise ValueError(problem)
        for name, limit in self.gate.items():
            if not math.isfinite(limit):
                raise ValueError(f"the gate's limit of {name} must be finite, got {limit}")
        for name, direction in self.directions.items():
            if direction not in _DIRECTIONS:
                raise ValueError(f"the direction of {name} must be {' or '.join(_DIRECTIONS)}, got {direction!r}")

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read `path`. Raises ForeignFileError, a CheckpointError, for a file that is no calibration."""
        with reading(path, "no calibration"):
            found = _typed(read_json(path, constants=True))
            return cls(**{name: value for name, value in found.items() if name != "version"})

    @property
    def version(self) -> str:
        """A digest of 128 bits of everything that is held, to name in manifests."""
        return hashlib.sha256(json.dumps(self._held(), sort_keys=True).encode()).hexdigest()[:32]

    def save(self, path: Path | str) -> None:
        """Write `path` as JSON, whole or not at all."""
        sweep(Path(path).parent)
        written = self._held() | {"version": self.version}
        write_whole(Path(path), (json.dumps(written, indent=2, sort_keys=True) + "\n").encode())

    def _held(self) -> dict[str, Any]:
        """Every field as JSON holds it: a whole number is its float."""
        numbers = {name: {key: float(limit) for key, limit in vars(self)[name].items()} for name in ("limits", "gate")}
        return vars(self) | numbers | {"directions": dict(self.directions)}


def calibrate(
    scores: Mapping[str, ArrayLike],
    population: str,
    *,
    quantile: float = 0.999,
    directions: Mapping[str, Direction] | None = None,
    population_sha256: str = "",
    signals: Mapping[str, ArrayLike] | None = None,
) -> Calibration:
    """Find limits that `quantile` of a clean population keeps.

    scores: by metric, the values (N,) of N clean finals against references they did not come from; the metrics named
    here are those that will be judged by. population: what they are, in words. directions: of metrics that are not
    built in. population_sha256: digest of what they were made from. signals: by gate signal, the values (M,) of M clean
    drafts, of which the gate's limits let at most `GATE_SHARE` through.

    The limit is one of the values, on the lenient side; with fewer than 1 / (1 - quantile) of them it is the most
    similar one. Raises ValueError for no scores, unequal numbers of them, or any that is not finite.
    """
    directions = dict(directions or {})
    values = {name: np.asarray(value, np.float64) for name, value in scores.items()}
    counts = {value.shape for value in values.values()}
    if len(counts) != 1 or len(shape := counts.pop()) != 1 or not shape[0]:
        raise ValueError(f"scores must hold as many values for each metric, got {_shapes(values)}")
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{np.count_nonzero(~np.isfinite(value))} scores of {name} are not finite")
    limits = {name: _limit(value, _direction(name, directions), quantile) for name, value in values.items()}
    gate = _gate(signals or {})
    used = {name: directions[name] for name in limits if name in directions}
    return Calibration(limits, population, quantile, shape[0], used, population_sha256, gate)


def _gate(signals: Mapping[str, ArrayLike]) -> dict[str, float]:
    """Limits of the gate's signals, any of which opens it: each may err for its part of the share."""
    quantile = 1 - GATE_SHARE / max(1, len(signals))
    return {name: _limit(np.asarray(values, np.float64), "similarity", quantile) for name, values in signals.items()}


def _limit(values: np.ndarray, direction: Direction, quantile: float) -> float:
    if direction == "similarity":
        return float(np.quantile(values, quantile, method="higher"))
    return float(np.quantile(values, 1 - quantile, method="lower"))


def _direction(name: str, directions: Mapping[str, Direction]) -> Direction:
    if name in ALL_METRICS:
        return ALL_METRICS[name].direction
    if name not in directions:
        raise ValueError(
            f"metric {name!r} is not built in: say in `directions` whether it is a similarity or a distance"
        )
    return directions[name]


def _shapes(values: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name}: {value.shape}" for name, value in values.items()) or "none"


def _typed(found: Any) -> dict[str, Any]:
    """Check the names and types of a file's fields."""
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, got {type(found).__name__}")
    if unknown := sorted(found.keys() - _FIELDS.keys()):
        raise ValueError(f"unknown field {unknown[0]!r}; known: {', '.join(_FIELDS)}")
    if missing := sorted(_FIELDS.keys() - found.keys() - set(_OPTIONAL)):
        raise ValueError(f"field {missing[0]!r} is missing")
    for name, value in found.items():
        if not isinstance(value, _FIELDS[name]) or isinstance(value, bool):
            raise ValueError(f"{name} must be {_FIELDS[name].__name__}, got {value!r}")
    limits, gate = (
        {name: _number(name, limit) for name, limit in found.get(kind, {}).items()} for kind in ("limits", "gate")
    )
    return found | {"limits": limits, "gate": gate}


def _number(name: str, limit: Any) -> float | int:
    if not isinstance(limit, int | float) or isinstance(limit, bool):
        raise ValueError(f"the limit of {name} must be a number, got {limit!r}")
    return limit

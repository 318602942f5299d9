"""Whose limits a study holds its pictures to: its own clean pairs', where they are enough of them, else the model's."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from ..api.calibration import Calibration
from ..api.metrics import METRICS

QUANTILE = 0.999
CONFIDENCE = 0.95

PAIRS_NEEDED = math.ceil(math.log(1 - CONFIDENCE) / math.log(QUANTILE))
"""Fewest clean pairs that limits are found on.

All of N pairs keep below the `QUANTILE` of their population with chance QUANTILE^N: from this N on that is at most
1 - `CONFIDENCE`, so that the closest pair lies beyond the quantile (Wilks, Ann. Math. Stat. 1941). Pairs that share a
picture tell less than independent ones: it is the least.
"""

PROMPTS_NEEDED = 6
"""Fewest prompts that presets are told apart on, and intervals over prompts are given for.

That all of N prompts speak for one of two equal presets has chance 2 / 2^N, below 5 % from here (the sign test).
"""

MOST_PAIRS = 3000
"""Most pairs that are measured of one population, drawn at random; enough of them alone for limits."""


@dataclass(frozen=True)
class StudyLimits:
    """Limits in force in a study.

    calibration: where they come from, None where there are none. own: whether they were found on the study's clean
    pairs rather than being the model's. pairs: how many clean pairs the study has.
    """

    calibration: Calibration | None
    own: bool
    pairs: int

    @property
    def limits(self) -> Mapping[str, float]:
        """By measure, those that are measured against works."""
        held = self.calibration.limits if self.calibration is not None else {}
        return {name: limit for name, limit in held.items() if name in METRICS}

    @property
    def source(self) -> str:
        """Whose they are, in words."""
        if self.own:
            return f"found on {self.pairs:,} clean pairs of this study"
        few = f"this study has {self.pairs:,} clean pairs and needs {PAIRS_NEEDED:,}"
        if not self.limits:
            return f"none: {few}, and the model is not calibrated"
        return f"the model's own, calibrated before: {few}"


def pair_count(groups: Sequence[Hashable]) -> int:
    """Pairs of different groups among things in `groups`, as many of them as are measured."""
    within = sum(math.comb(size, 2) for size in Counter(groups).values())
    return min(MOST_PAIRS, math.comb(len(groups), 2) - within)

"""Named bundles of avoidance, gate and judge: how much a user wants to be kept from copies, in one word."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from .mechanisms import Avoidance, DelayedGuidance, MovedControl
from .request import Gate, SimilarityPolicy


class Preset(StrEnum):
    """Names of the bundles, from the lightest to the heaviest."""

    OFF = "off"
    GENTLE = "gentle"
    DEFAULT = "default"
    STRICT = "strict"

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of a request: `GenerationRequest(prompt=..., **Preset.STRICT.settings)`."""
        bundle = BUNDLES[self]
        return {"avoidance": bundle.avoidance, "gate": bundle.gate, "similarity": bundle.similarity}


@dataclass(frozen=True)
class Bundle:
    """What a preset stands for, and when to take it."""

    avoidance: Avoidance
    gate: Gate | None
    similarity: SimilarityPolicy
    purpose: str


BUNDLES: Mapping[Preset, Bundle] = MappingProxyType(
    {
        Preset.OFF: Bundle(
            Avoidance.off(), None, SimilarityPolicy(), "nothing is avoided; finals are measured and judged all the same"
        ),
        Preset.GENTLE: Bundle(
            Avoidance(delayed_guidance=DelayedGuidance(stop=0.3), moved_control=MovedControl(scale=1.5)),
            Gate(),
            SimilarityPolicy(retries=1),
            "as the default at three quarters of its strength, with one retry",
        ),
        Preset.DEFAULT: Bundle(
            Avoidance(),
            Gate(),
            SimilarityPolicy(),
            "a draft that looks recalled is left and its finals are judged; elsewhere the plain picture, bit for bit",
        ),
        Preset.STRICT: Bundle(
            Avoidance().escalated(1),
            None,
            SimilarityPolicy(retries=4),
            "every draft's shape is left, more strongly, and refused pictures are drawn again four times",
        ),
    }
)
"""The presets' values, in this one place. A gate without calibrated thresholds is open."""

"""Named bundles of avoidance, gate and judge: how much a user wants to be kept from copies, in one word."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .choices import Preset
from .mechanisms import Avoidance, DelayedGuidance, MovedControl
from .request import Gate, SimilarityPolicy


@dataclass(frozen=True)
class Bundle:
    """What a preset stands for."""

    avoidance: Avoidance
    gate: Gate | None
    similarity: SimilarityPolicy


BUNDLES: Mapping[Preset, Bundle] = MappingProxyType(
    {
        Preset.OFF: Bundle(Avoidance.off(), None, SimilarityPolicy()),
        Preset.GENTLE: Bundle(
            Avoidance(delayed_guidance=DelayedGuidance(stop=0.3), moved_control=MovedControl(scale=1.5)),
            Gate(),
            SimilarityPolicy(retries=1),
        ),
        Preset.DEFAULT: Bundle(Avoidance(), Gate(), SimilarityPolicy()),
        Preset.STRICT: Bundle(Avoidance().escalated(1), None, SimilarityPolicy(retries=4)),
    }
)
"""The presets' values, in this one place. A gate without calibrated thresholds is open."""

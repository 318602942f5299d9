"""Named bundles of avoidance, gate and judge: how much a user wants to be kept from copies, in one word."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .choices import Preset, Warp
from .mechanisms import Avoidance, DelayedGuidance, MovedControl, RestatedPrompt
from .request import Gate, SimilarityPolicy
from .settings import Stage


@dataclass(frozen=True)
class Bundle:
    """What a preset stands for.

    draft_steps: most steps of a draft, whose shape alone is used; None for as many as the final has. redraft: whether a
    refused final that lost an object is drawn again from a draft of as many steps as the final.
    """

    avoidance: Avoidance
    gate: Gate | None
    similarity: SimilarityPolicy
    draft_steps: int | None = None
    redraft: bool = False

    def stages(self, final: Stage, draft: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Fields of a request whose final runs as `final`: draft, final and redraft.

        draft: fields of a `Stage` in which the draft differs; one with a solver of its own has that solver's schedule.
        Raises pydantic's ValidationError for values that a stage cannot have.
        """
        steps = min(self.draft_steps or final.steps, final.steps)
        own = dict(draft or {})
        scheduled = {"spacing": None, "sigmas": None, "eta": None} if "solver" in own else {}
        drafted = Stage(**{**final.model_dump(), "steps": steps, **scheduled, **own})
        again = final.steps if self.redraft and drafted.steps < final.steps else None
        return {"draft": drafted, "final": final, "redraft": again}

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of a request; those of its stages only where the draft is to differ from the final."""
        stages = self.stages(Stage()) if self.draft_steps is not None else {}
        return {"avoidance": self.avoidance, "gate": self.gate, "similarity": self.similarity, **stages}


_COMPOSED = Avoidance(moved_control=MovedControl(warp=Warp.BANK), restated_prompt=RestatedPrompt())

BUNDLES: Mapping[Preset, Bundle] = MappingProxyType(
    {
        Preset.OFF: Bundle(Avoidance.off(), None, SimilarityPolicy()),
        Preset.GENTLE: Bundle(
            Avoidance(
                delayed_guidance=DelayedGuidance(stop=0.3),
                moved_control=MovedControl(scale=1.5, warp=Warp.BANK),
                restated_prompt=RestatedPrompt(stop=0.7),
            ),
            Gate(),
            SimilarityPolicy(retries=1),
        ),
        Preset.DEFAULT: Bundle(_COMPOSED, None, SimilarityPolicy(), draft_steps=4, redraft=True),
        Preset.STRICT: Bundle(_COMPOSED.escalated(1), None, SimilarityPolicy(retries=4), draft_steps=4, redraft=True),
    }
)
"""The presets' values, in this one place. A gate without calibrated thresholds is open."""

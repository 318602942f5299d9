"""Named bundles of avoidance, gate and judge: how much a user wants to be kept from copies, in one word."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .choices import Preset, Solver, Warp
from .mechanisms import Avoidance, DelayedGuidance, MovedControl, RestatedPrompt
from .request import Gate, SimilarityPolicy
from .settings import Stage


@dataclass(frozen=True)
class Bundle:
    """What a preset stands for.

    draft_steps: most steps of a draft, whose shape alone is used; None for as many as the final has. redraft: whether a
    refused final that lost an object is drawn again from a draft of as many steps as the final. final: fields of the
    final's stage where nothing was said of them, its steps among them; a final of no more steps stays as it is.
    """

    avoidance: Avoidance
    gate: Gate | None
    similarity: SimilarityPolicy
    draft_steps: int | None = None
    redraft: bool = False
    final: Mapping[str, Any] = field(default_factory=dict)

    def stages(
        self, final: Stage, draft: Mapping[str, Any] | None = None, said: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Fields of a request whose final runs as `final`, but as the preset says: draft, final and redraft.

        draft: fields of a `Stage` in which the draft differs; one with a solver of its own has that solver's schedule.
        said: fields of `final` that were asked for, which no preset changes; those that were set, if None.
        Raises pydantic's ValidationError for values that a stage cannot have.
        """
        last = self._final(final, final.model_fields_set if said is None else said)
        steps = min(self.draft_steps or last.steps, last.steps)
        own = dict(draft or {})
        scheduled = {"spacing": None, "sigmas": None, "eta": None} if "solver" in own else {}
        drafted = Stage(**{**final.model_dump(), "steps": steps, **scheduled, **own})
        again = last.steps if self.redraft and drafted.steps < last.steps else None
        return {"draft": drafted, "final": last, "redraft": again}

    def _final(self, final: Stage, said: Collection[str]) -> Stage:
        if not self.final or final.steps <= self.final["steps"]:
            return final
        return Stage(**final.model_dump() | {name: value for name, value in self.final.items() if name not in said})

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of a request; those of its stages only where the draft is to differ from the final."""
        stages = self.stages(Stage()) if self.draft_steps is not None else {}
        return {"avoidance": self.avoidance, "gate": self.gate, "similarity": self.similarity, **stages}


_COMPOSED = Avoidance(moved_control=MovedControl(warp=Warp.BANK), restated_prompt=RestatedPrompt())

BUNDLES: Mapping[Preset, Bundle] = MappingProxyType(
    {
        Preset.PLAIN: Bundle(Avoidance.off(), Gate(shut=True), SimilarityPolicy()),
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
        Preset.FAST: Bundle(
            _COMPOSED.model_copy(update={"moved_control": MovedControl(warp=Warp.BANK, stop=0.5)}),
            None,
            SimilarityPolicy(),
            draft_steps=4,
            redraft=True,
            final={"solver": Solver.DPMPP_2M, "steps": 12, "guidance_stop": 0.8, "cache_interval": 2},
        ),
        Preset.DEFAULT: Bundle(_COMPOSED, None, SimilarityPolicy(), draft_steps=4, redraft=True),
        Preset.STRICT: Bundle(_COMPOSED.escalated(1), None, SimilarityPolicy(retries=4), draft_steps=4, redraft=True),
    }
)
"""The presets' values, in this one place. A gate without calibrated thresholds is open."""

"""The judge of one model: what it measures of drafts and finals, and the rule and the gate that decide on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..api.errors import InvalidRequestError
from ..api.metrics import CONTROL_METRICS, SHARE, Direction
from ..api.reading import shown
from ..api.request import GenerationRequest, SimilarityPolicy
from ..api.result import GateDecision
from ..api.rules import Rule
from ..avoidance.objects import coarse, counted, objects_of
from ..avoidance.words import Named, lexicon
from ..models.components import Components
from ..models.pictures import eight_bits
from ..models.transfers import constant, fetched
from .extra import PREFIX, ExtraMetric, check_metrics, check_scores, extra_scores
from .gate import AGREEMENT, draft_signals, first_look, gate_limits, second_look
from .named import weights_of
from .objects import colours_kept, difference, kept
from .protected import Protected
from .registry import Nearest, Registry, views
from .similarity import MASK_METRICS, METRICS, direction_of, measure, rule_in_force, similarity_maps


class Measured(NamedTuple):
    """Measures of one final, None for one that does not apply, and the id of the registered work it is most like.

    words: what some of them found, by name.
    """

    values: Mapping[str, float | None]
    nearest: str | None
    words: Mapping[str, str] = MappingProxyType({})


class Launched(NamedTuple):
    """What is measured of a batch of finals, where they are: labels, measures and those against works, by name.

    nearest: the works that are nearest to each, None without a registry.
    """

    tables: tuple[dict[str, Tensor], ...]
    nearest: Nearest | None


class Asked(NamedTuple):
    """What a final was to show: the label map (H, W) that it followed, and what its prompt names."""

    control: np.ndarray
    named: tuple[Named, ...]


class Judge:
    """Measures pictures against their references and the registered works, and holds them to their requests' rules.

    decode: latents (B, C, h, w) -> pixels (B, 3, H, W) in [0, 1]. segment: pixels -> labels (B, H, W), None without a
    segmenter. protected: what holds finals against registered works, None without any.

    Raises InvalidRequestError for a metric of the user's that cannot be told from others by its name.
    """

    def __init__(
        self,
        components: Components,
        extra_metrics: Mapping[str, ExtraMetric],
        registry: Registry | None,
        decode: Callable[[Tensor], Tensor],
        segment: Callable[[Tensor], Tensor | None],
    ) -> None:
        check_metrics(extra_metrics)
        self.components = components
        self.extra_metrics = extra_metrics
        self.registry = registry if registry is not None and len(registry) else None
        self._segment = segment
        self.directions = self._directions()
        self.protected = (
            Protected(self.registry, extra_metrics, self.directions, decode, self._shapes_of)
            if self.registry is not None
            else None
        )

    def _directions(self) -> dict[str, Direction]:
        """Which way each measure points that finals get on this model."""
        seen = [*MASK_METRICS, *CONTROL_METRICS] if self.components.segmenter is not None else []
        names = [*METRICS, *seen, *self.extra_metrics]
        known: dict[str, Direction] = {name: direction_of(name, self.extra_metrics) for name in names}
        if self.registry is not None:
            known |= {PREFIX + name: known[name] for name in (*METRICS, *self.extra_metrics)}
            known[f"{PREFIX}descriptor"] = "similarity"
            if not self.registry.unmeasured:
                known |= {f"{PREFIX}{name}{SHARE}": "similarity" for name in self.registry.works[0].own}
        return known

    @property
    def weights(self) -> dict[str, str]:
        """SHA-256 of the weights of further measures that were named, by what named them."""
        return weights_of(self.extra_metrics)

    def rule(self, request: GenerationRequest) -> Rule:
        """Return the rule in force, in numbers.

        Raises InvalidRequestError for a metric that is not measured here or a limit that is not calibrated.
        """
        self._check_shares(request)
        if not self.sees_shape(request):
            return self._shapeless_rule(request.similarity)
        return rule_in_force(request.similarity, self.components.calibration, self.directions)

    def sees_shape(self, request: GenerationRequest) -> bool:
        """Whether the shape is known that a request's finals are to leave; else they are not held against the draft."""
        return self.components.segmenter is not None or request.mask is not None

    def compares(self, request: GenerationRequest) -> bool:
        """Whether a request's finals are held against its draft."""
        return self.sees_shape(request) and not request.is_plain

    def holds(self, request: GenerationRequest) -> bool:
        """Whether the request, or else the model, says what finals are held against."""
        policy = request.similarity
        if request.is_plain:
            return any(each.metric.startswith(PREFIX) for each in self.rule(request).comparisons)
        return policy.rule is not None or policy.limits is not None or bool(self.rule(request).clauses)

    def _shapeless_rule(self, policy: SimilarityPolicy) -> Rule:
        """A rule that speaks of registered works alone."""
        if policy.rule is None and policy.limits is None:
            return Rule(retries=policy.retries)
        named = [each.metric for each in Rule.parse(policy.rule).comparisons] if policy.rule else policy.limits or ()
        if lacking := [name for name in named if not name.startswith(PREFIX)]:
            raise InvalidRequestError(
                f"{shown(lacking[0])} is measured where the shape of the draft is known, and this model has no "
                "segmenter: load one with segmenter=..., or bring a mask"
            )
        return rule_in_force(policy, None, {n: way for n, way in self.directions.items() if n.startswith(PREFIX)})

    def _check_shares(self, request: GenerationRequest) -> None:
        """Shares of what works score themselves are known where that was measured when they were added."""
        lacking = self.registry.unmeasured if self.registry is not None else ()
        policy = request.similarity
        asked = (each.metric for each in Rule.parse(policy.rule).comparisons) if policy.rule else policy.limits or ()
        named = next((name for name in asked if name.startswith(PREFIX) and name.endswith(SHARE)), None)
        if lacking and named is not None:
            raise InvalidRequestError(
                f"{named} needs what each work scores itself, and {len(lacking)} works of the registry, "
                f"{lacking[0].id} the first, were added before that was kept; add them again with `twig registry add`"
            )

    # --- drafts ---

    def gate_limits(self, request: GenerationRequest) -> dict[str, float] | None:
        """Limits of the request's gate; None for one that is shut, or open: without any, or with a source or mask.

        Raises InvalidRequestError for a signal that there is not.
        """
        if request.gate is None or request.is_plain or request.source is not None or request.mask is not None:
            return None
        calibration = self.components.calibration
        calibrated = calibration.gate if calibration is not None else {}
        return gate_limits(request.gate, calibrated, self.registry is not None)

    def views(self, draft: Tensor) -> Tensor | None:
        """What the gate has to know of a draft (1, 3, H, W), `registry.views` of it; None without registered works."""
        return None if self.registry is None else views(draft)

    def gate(self, request: GenerationRequest, seen: np.ndarray | None, magnitudes: np.ndarray | None) -> GateDecision:
        """Decide, as far as witnesses are not needed, whether a draft looks recalled.

        seen: `views` of it, on the host. magnitudes (S,): of its guidance.
        """
        nearest, similarity = None, None
        if self.registry is not None:
            assert seen is not None
            found = self.registry.nearest_to(seen)
            nearest, similarity = self.registry.works[found.positions[0, 0]].id, float(found.similarity[0, 0])
        decision = first_look(draft_signals(magnitudes, similarity), self.gate_limits(request), nearest)
        return replace(decision, opened=False) if request.is_plain else decision

    def wants_witnesses(self, request: GenerationRequest, decision: GateDecision) -> bool:
        """Whether the gate, shut so far, has a limit on what other seeds make of the prompt."""
        limits = self.gate_limits(request)
        return not decision.opened and limits is not None and AGREEMENT in limits

    def most_witnesses(self, request: GenerationRequest) -> int:
        """How many witnesses the request's gate may call."""
        limits = self.gate_limits(request)
        return request.gate.witnesses if request.gate is not None and limits is not None and AGREEMENT in limits else 0

    def witnessed(
        self, request: GenerationRequest, decision: GateDecision, agreements: Sequence[float], rows: int
    ) -> GateDecision:
        """Decide with the agreement of each witness, for `rows` in all."""
        limits = self.gate_limits(request)
        assert limits is not None
        return second_look(decision, agreements, limits, rows)

    # --- finals ---

    def launch(self, finals: Tensor, references: Tensor, masks: Tensor) -> Launched:
        """Have measured what is to be measured of finals; arguments as of `similarity.measure`."""
        labels = self._segment(finals)
        final_masks = None if labels is None else self._shapes(labels)
        values = measure(finals, references, masks, final_masks=final_masks)
        values |= extra_scores(self.extra_metrics, finals, references)
        seen = {} if labels is None else {"labels": labels}
        if self.protected is None:
            return Launched((seen, values), None)
        against = self.protected.launch(finals)
        return Launched((seen, values, against.values), against.nearest)

    def launch_alone(self, finals: Tensor) -> Launched:
        """The same of finals that are held against registered works alone."""
        if self.protected is None:
            return Launched(({}, {}), None)
        against = self.protected.launch(finals)
        return Launched(({}, {}, against.values), against.nearest)

    def read(
        self,
        tables: Sequence[Mapping[str, Tensor]],
        nearest: Nearest | None,
        drawn: np.ndarray,
        asked: Sequence[Asked | None],
    ) -> list[Measured]:
        """Measures of each final from what `launch` found, on the host. Those against registered works: `PREFIX`.

        drawn (B, H, W, 3) uint8: the finals. asked: what each was to show, None for one that followed no map.
        """
        seen, values, *works = tables
        for table in (values, *works):
            check_scores({name: table[name] for name in self.extra_metrics if name in table})
        rows: list[dict[str, float | None]] = [
            {name: float(value[i]) for name, value in values.items()} for i in range(len(drawn))
        ]
        words: list[dict[str, str]] = [{} for _ in rows]
        if "labels" in seen:
            for row, said, one, labels, wanted in zip(rows, words, drawn, seen["labels"].numpy(), asked, strict=True):
                found = self._shown(one, labels, wanted)
                row |= {name: None if each is None else each[0] for name, each in found.items()}
                said |= {name: each[1] for name, each in found.items() if each is not None}
        if self.protected is None or nearest is None:
            return [Measured(row, None, said) for row, said in zip(rows, words, strict=True)]
        closest = self.protected.read(nearest, works[0])
        return [
            Measured({**row, **against}, id, said)
            for row, (against, id), said in zip(rows, closest, words, strict=True)
        ]

    def compare(self, finals: Tensor, references: Tensor) -> list[Measured]:
        """Measure pictures (B, 3, H, W) that are no results against others, whose shapes are found here."""
        weight = next(self.components.vae.parameters())
        finals, references = finals.to(weight.device), references.to(weight.device)
        launched = self.launch(finals, references, self._shapes_of(references))
        found, *tables = fetched([{"drawn": eight_bits(finals)}, *launched.tables])
        return self.read(tables, launched.nearest, found["drawn"].numpy(), [None] * len(finals))

    def _shapes(self, labels: Tensor) -> Tensor:
        """Where labels (B, H, W) show objects."""
        assert self.components.segmenter is not None
        return ~torch.isin(labels, constant(tuple(sorted(self.components.segmenter.background)), labels))

    def _shapes_of(self, pixels: Tensor) -> Tensor:
        """Shapes (B, H, W) that are seen in pixels; the whole frame without a segmenter."""
        labels = self._segment(pixels)
        return torch.ones_like(pixels[:, 0], dtype=torch.bool) if labels is None else self._shapes(labels)

    def asked(self, prompt: str, control: np.ndarray | None) -> Asked | None:
        """What a final of `prompt` that followed `control` (H, W) is to show; None where it followed none."""
        segmenter = self.components.segmenter
        if control is None or segmenter is None:
            return None
        return Asked(control, lexicon(segmenter.labels, segmenter.background).read(prompt))

    def _shown(self, drawn: np.ndarray, labels: np.ndarray, asked: Asked | None) -> dict[str, tuple[float, str] | None]:
        """Measures of what a final (H, W, 3) uint8 with labels (H, W) shows of what was asked, each with its words."""
        if asked is None:
            return dict.fromkeys(CONTROL_METRICS)
        segmenter = self.components.segmenter
        assert segmenter is not None
        objects = objects_of(coarse(labels), segmenter.background)
        seen, wanted = counted(objects), counted(objects_of(coarse(asked.control), segmenter.background))
        return {
            "classes_kept": (kept(seen, wanted), difference(seen, wanted, segmenter.names)),
            "colours_kept": colours_kept(coarse(drawn), objects, asked.named, segmenter.names),
        }

    def maps(self, final: Tensor, reference: Tensor | None, nearest: str | None) -> dict[str, Tensor]:
        """Where a final (3, H, W) is like its reference (1, 3, H, W) and its nearest work: `Explanation.similarity`."""
        against = {"reference": reference}
        if self.protected is not None and nearest is not None:
            against["work"] = self.protected.work(nearest, final.device)
        found: dict[str, Tensor] = {}
        for name, other in against.items():
            if other is not None:
                scaled = F.interpolate(other, final.shape[-2:], mode="area")
                for kind, values in similarity_maps(final[None], scaled).items():
                    found[name if kind == "raw" else f"{name}_{kind}"] = values[0]
        return found

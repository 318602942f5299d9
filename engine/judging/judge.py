"""The judge of one model: what it measures of drafts and finals, and the rule and the gate that decide on them."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
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
from ..models.checkpoint import Components
from .extra import PREFIX, ExtraMetric, check_metrics, extra_scores
from .gate import AGREEMENT, draft_signals, first_look, gate_limits, second_look
from .registry import Registry
from .similarity import MASK_METRICS, METRICS, direction_of, measure, rule_in_force, similarity_maps

_CANDIDATES = 3
_LEAST_OWN = 0.05  # a work that is less like itself than this is not told from others by what it scores
_SMALLEST_OBJECT = 0.01
_DECODED = 64  # works whose pixels stay in memory


class Measured(NamedTuple):
    """Measures of one final, None for one that does not apply, and the id of the registered work it is most like."""

    values: Mapping[str, float | None]
    nearest: str | None


class Judge:
    """Measures pictures against their references and the registered works, and holds them to their requests' rules.

    decode: latents (B, C, h, w) -> pixels (B, 3, H, W) in [0, 1]. segment: pixels -> labels (B, H, W), None without a
    segmenter. Raises InvalidRequestError for a metric of the user's that cannot be told from others by its name.
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
        self._decode, self._segment = decode, segment
        self._works: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self.directions = self._directions()

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

    def holds(self, request: GenerationRequest) -> bool:
        """Whether the request, or else the model, says what finals are held against."""
        policy = request.similarity
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
        """Limits of the request's gate; None, for a gate that stands open, without any, or with a source or mask.

        Raises InvalidRequestError for a signal that there is not.
        """
        if request.gate is None or request.source is not None or request.mask is not None:
            return None
        calibration = self.components.calibration
        calibrated = calibration.gate if calibration is not None else {}
        return gate_limits(request.gate, calibrated, self.registry is not None)

    def gate(self, request: GenerationRequest, draft: Tensor, magnitudes: np.ndarray | None) -> GateDecision:
        """Decide, as far as witnesses are not needed, whether a draft (1, 3, H, W) looks recalled.

        magnitudes (S,): of its guidance.
        """
        nearest, similarity = None, None
        if self.registry is not None:
            found = self.registry.nearest(draft)
            nearest, similarity = self.registry.works[found.positions[0, 0]].id, float(found.similarity[0, 0])
        return first_look(draft_signals(magnitudes, similarity), self.gate_limits(request), nearest)

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

    def measure(
        self,
        finals: Tensor,
        references: Tensor,
        masks: Tensor,
        controls: Sequence[np.ndarray | None] | None = None,
    ) -> list[Measured]:
        """Measures of each final; arguments as of `similarity.measure`. Those against registered works: `PREFIX`.

        controls: label maps (H, W) that the finals followed, None for one that followed none.
        """
        labels = self._segment(finals)
        final_masks = None if labels is None else self._shapes(labels)
        values = measure(finals, references, masks, final_masks=final_masks)
        values |= extra_scores(self.extra_metrics, finals, references)
        rows: list[dict[str, float | None]] = [
            {name: float(value[i]) for name, value in values.items()} for i in range(len(finals))
        ]
        if labels is not None and controls is not None:
            for row, seen, control in zip(rows, labels.cpu().numpy(), controls, strict=True):
                row["classes_kept"] = None if control is None else self._classes_kept(seen, control)
        if self.registry is None:
            return [Measured(row, None) for row in rows]
        works = self._against_works(finals, self.registry)
        return [Measured(row | dict(against.values), against.nearest) for row, against in zip(rows, works, strict=True)]

    def compare(self, finals: Tensor, references: Tensor) -> list[Measured]:
        """Measure pictures (B, 3, H, W) that are no results against others, whose shapes are found here."""
        weight = next(self.components.vae.parameters())
        finals, references = finals.to(weight.device), references.to(weight.device)
        return self.measure(finals, references, self._shapes_of(references))

    def _shapes(self, labels: Tensor) -> Tensor:
        """Where labels (B, H, W) show objects."""
        assert self.components.segmenter is not None
        background = torch.tensor(sorted(self.components.segmenter.background), device=labels.device)
        return ~torch.isin(labels, background)

    def _shapes_of(self, pixels: Tensor) -> Tensor:
        """Shapes (B, H, W) that are seen in pixels; the whole frame without a segmenter."""
        labels = self._segment(pixels)
        return torch.ones_like(pixels[:, 0], dtype=torch.bool) if labels is None else self._shapes(labels)

    def _classes_kept(self, labels: np.ndarray, control: np.ndarray) -> float:
        """Jaccard index of the classes of objects in two label maps (H, W); 1 where neither shows any."""
        seen, asked = self._classes(labels), self._classes(control)
        return len(seen & asked) / len(seen | asked) if seen | asked else 1.0

    def _classes(self, labels: np.ndarray) -> set[int]:
        """Classes of objects that cover at least `_SMALLEST_OBJECT` of the frame."""
        assert self.components.segmenter is not None
        found, areas = np.unique(labels, return_counts=True)
        large = {int(label) for label in found[areas >= _SMALLEST_OBJECT * labels.size]}
        return large - self.components.segmenter.background

    def maps(self, final: Tensor, reference: Tensor | None, nearest: str | None) -> dict[str, np.ndarray]:
        """Where a final (3, H, W) is like its reference (1, 3, H, W) and its nearest work: `Explanation.similarity`."""
        against = {"reference": reference, "work": self.work(nearest) if nearest is not None else None}
        found: dict[str, np.ndarray] = {}
        for name, other in against.items():
            if other is not None:
                scaled = F.interpolate(other, final.shape[-2:], mode="area")
                for kind, values in similarity_maps(final[None], scaled).items():
                    found[name if kind == "raw" else f"{name}_{kind}"] = values[0].cpu().numpy()
        return found

    def _against_works(self, finals: Tensor, registry: Registry) -> list[Measured]:
        """The closest of each measure against the works whose descriptors are nearest."""
        found = registry.nearest(finals, _CANDIDATES)
        count = found.positions.shape[1]
        works = [self._work(int(position), registry) for position in found.positions.flatten()]
        references, masks = (torch.cat(parts) for parts in zip(*works, strict=True))
        pairs = F.interpolate(finals, references.shape[-2:], mode="area").repeat_interleave(count, 0)
        values = measure(pairs, references, masks)
        values |= extra_scores(self.extra_metrics, pairs, references)
        table = {name: value.reshape(len(finals), count).cpu() for name, value in values.items()}
        table["descriptor"] = torch.from_numpy(found.similarity).float()
        shares = {} if registry.unmeasured else self._shares(table, found.positions, registry)
        return [
            Measured(
                {PREFIX + name: self._closest(PREFIX + name, value[i]) for name, value in table.items()}
                | {name: float(value[i].max()) for name, value in shares.items()},
                registry.works[found.positions[i, 0]].id,
            )
            for i in range(len(finals))
        ]

    def _shares(self, table: Mapping[str, Tensor], positions: np.ndarray, registry: Registry) -> dict[str, Tensor]:
        """Measures (B, k) against the works at `positions` (B, k), over what an exact copy of each scores."""
        return {
            f"{PREFIX}{name}{SHARE}": table[name]
            / torch.tensor([[registry.works[i].own[name] for i in row] for row in positions]).clamp_min(_LEAST_OWN)
            for name in registry.works[0].own
        }

    def _closest(self, name: str, values: Tensor) -> float:
        return float(values.max() if self.directions[name] == "similarity" else values.min())

    def _work(self, position: int, registry: Registry) -> tuple[Tensor, Tensor]:
        """A work's pixels (1, 3, H, W) and shape (1, H, W): as kept, else as decoded, which stays in memory."""
        if position not in self._works:
            weight = next(self.components.vae.parameters())
            kept = registry.pictures.get(registry.works[position].id)
            if kept is not None:
                pixels = kept[None].to(weight.device).float() / 255
            else:
                pixels = self._decode(registry.latents[position][None].to(weight.device))
            self._works[position] = pixels, self._shapes_of(pixels)
            if len(self._works) > _DECODED:
                self._works.popitem(last=False)
        return self._works[position]

    def work(self, id: str) -> Tensor:
        """Pixels (1, 3, H, W) of the registered work with `id`."""
        assert self.registry is not None
        position = next(i for i, work in enumerate(self.registry.works) if work.id == id)
        return self._work(position, self.registry)[0]

"""The gate: does a draft look as if it were recalled from memory? Avoidance costs nothing where it does not."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..api.errors import InvalidRequestError
from ..api.request import Control, Gate
from ..api.result import GateDecision, Score
from ..api.settings import Stage
from ..sampling.rows import Row, guidance_rows, plan_rows

AGREEMENT = "agreement"

SIGNALS: Mapping[str, str] = {
    "guidance": "how much more the prompt moves the prediction early in the draft than midway; after Wen et al., "
    "ICLR 2024, and Jain et al., CVPR 2025",
    "registry": "similarity of the draft's structure to the nearest registered work",
    AGREEMENT: "how much the draft, where it shows objects, looks like what its prompt's first steps from other seeds "
    "lead to; one picture from many seeds is what Carlini et al., USENIX Security 2023, find recitation by",
}
"""What the gate looks at, and where it comes from. A recalled draft scores high in each."""

EARLY, MIDDLE = (0.05, 0.3), (0.3, 0.8)
"""Parts of a draft's steps that the guidance signal compares. The very first step is noise whatever the prompt."""

WITNESS_STEPS = 0.2
"""Share of a draft's steps that a witness runs: the layout of a recalled picture is settled by then."""

_MARGIN = 1 / 8
"""How far around a draft's objects witnesses are compared with it, as a share of the frame's shorter side."""

_ROUNDING = 1e-9


LISTENING = {AGREEMENT: 1e9}
"""Limits under which witnesses are heard and never open the gate: what a calibration measures with."""


def draft_signals(magnitudes: np.ndarray | None, registry: float | None) -> dict[str, float]:
    """Signals of one draft: its guidance magnitudes (S,), None if it ran unguided, and likeness to its nearest work."""
    found = {"guidance": float("nan") if magnitudes is None else early_guidance(magnitudes)}
    return found if registry is None else found | {"registry": registry}


def early_guidance(magnitudes: np.ndarray) -> float:
    """Mean guidance magnitude over the `EARLY` part of the steps over that of the `MIDDLE`; NaN for too few steps.

    A recalled picture is settled early: the prompt pulls hard until the run is in its basin, and has little to add
    from there on. Of a fresh picture the prompt has as much to say in the middle as before.
    """
    early, middle = (_window(magnitudes, *part) for part in (EARLY, MIDDLE))
    return float(early.mean() / middle.mean()) if early.size and middle.size and middle.mean() > 0 else float("nan")


def _window(magnitudes: np.ndarray, start: float, stop: float) -> np.ndarray:
    """Magnitudes from `start` to `stop`, fractions of the steps."""
    place = np.arange(len(magnitudes)) / len(magnitudes) + _ROUNDING
    return magnitudes[(place >= start) & (place < stop)]


def witness_plan(draft: Stage, further: Sequence[Control] = (), embedded: bool = False) -> tuple[tuple[Row, ...], ...]:
    """Rows of each step of a witness: the draft's first ones; further, embedded: as of `plan_rows`.

    Its last step needs no guidance: what the prompt alone predicts is compared with the draft.
    """
    steps = max(1, round(WITNESS_STEPS * draft.evaluations))
    plan = plan_rows(draft, further=further, embedded=embedded)
    followed = plan[steps - 1][0].further
    return *plan[: steps - 1], tuple(replace(row, further=followed) for row in guidance_rows(1))


def witness_rows(draft: Stage, embedded: bool = False) -> int:
    """UNet rows of a witness."""
    return sum(map(len, witness_plan(draft, embedded=embedded)))


def agreement(witness: Tensor, draft: Tensor, mask: Tensor) -> Tensor:
    """Correlation () of a witness's predicted x0 with a draft's latent, both (C, h, w), in and around its mask (H, W).

    Pearson's, over pixels and channels, each channel centred, weighted by how much of a latent's pixel lies in the
    mask; over the whole frame where the mask is empty. NaN where either is constant.
    """
    height, width = draft.shape[-2:]
    weight = _surroundings(mask, (height, width))
    seen, drawn = _centred(witness, weight), _centred(draft, weight)
    return (seen * drawn).sum() / (seen.norm() * drawn.norm())


def _centred(latent: Tensor, weight: Tensor) -> Tensor:
    """A latent (C, h, w) less each channel's weighted mean, times the root of the weight (h, w)."""
    mean = (latent * weight).sum((-2, -1), keepdim=True) / weight.sum()
    return (latent - mean) * weight.sqrt()


def _surroundings(mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """A mask (H, W) and `_MARGIN` around it, at a latent's (h, w)."""
    reach = round(_MARGIN * min(shape))
    pooled = F.adaptive_avg_pool2d(mask[None].float(), shape)
    grown = F.max_pool2d(pooled, 2 * reach + 1, 1, reach)[0]
    return torch.where(grown.any(), grown, grown + 1)


def gate_limits(gate: Gate, calibrated: Mapping[str, float], has_registry: bool) -> dict[str, float] | None:
    """Thresholds in force: the gate's own, else the calibrated ones of the signals there are, else None.

    Raises InvalidRequestError for a signal that there is not.
    """
    known = [name for name in SIGNALS if name != "registry" or has_registry]
    if gate.limits is not None:
        if unknown := sorted(gate.limits.keys() - set(known)):
            raise InvalidRequestError(f"unknown signal {unknown[0]!r} in gate.limits; known: {', '.join(known)}")
        return dict(gate.limits) or None
    return {name: limit for name, limit in calibrated.items() if name in known} or None


def decide(signals: Mapping[str, float], limits: Mapping[str, float] | None, nearest: str | None) -> GateDecision:
    """Open the gate where any signal passes its limit; always without limits, which is how avoidance is asked for.

    A signal that could not be measured opens it: what cannot be checked must not count as harmless. nearest: id of
    the registered work that the draft is most like.
    """
    scores = {name: _score(value, (limits or {}).get(name)) for name, value in signals.items()}
    unmeasured = limits is not None and not limits.keys() <= signals.keys()
    opened = limits is None or unmeasured or not all(score.passed for score in scores.values())
    return GateDecision(opened, scores, nearest)


def first_look(signals: Mapping[str, float], limits: Mapping[str, float] | None, nearest: str | None) -> GateDecision:
    """What the draft's own signals make of the gate; its agreement with witnesses is asked only where they do not."""
    own = None if limits is None else {name: limit for name, limit in limits.items() if name != AGREEMENT}
    return decide(signals, own, nearest)


def second_look(
    first: GateDecision, agreements: Sequence[float], limits: Mapping[str, float], rows: int
) -> GateDecision:
    """The same with the agreement of each witness, for `rows` of the UNet.

    What counts is halfway from their mean to the highest: that one seed draws the same picture tells as much as that
    all lean to it. NaN of one is NaN of all.
    """
    score = _score(float(np.mean(agreements) + np.max(agreements)) / 2, limits[AGREEMENT])
    return replace(first, opened=not score.passed, signals={**first.signals, AGREEMENT: score}, rows=rows)


def _score(value: float, limit: float | None) -> Score:
    return Score(value, limit, limit is None or value <= limit)

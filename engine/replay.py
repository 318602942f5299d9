"""Replay: make a manifest's picture again and say whether it, and all that is said of it, is the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from .api.choices import PromptSyntax, Warp
from .api.errors import CheckpointError, InvalidRequestError
from .api.request import SimilarityPolicy
from .api.result import Attempt, GateDecision, GenerationResult, Score
from .engine import Engine
from .records.manifest import (
    Hashes,
    InputRecord,
    Machine,
    Manifest,
    ModelRecord,
    PromptRecord,
    libraries,
    pixel_hash,
    request_hash,
)

SCORE_TOLERANCE = 1e-3
"""How far a score may be from the manifest's on another machine, relative or absolute; on the same, not at all."""


@dataclass(frozen=True)
class Replay:
    """How a regenerated result compares with its manifest.

    same: by name of what was compared, whether it is the same: each picture by its pixels, the picture that was saved,
    the request by the digest that the manifest holds of it, verdict, error, rule, scores, attempts, gate, rows.
    same_machine, same_libraries, same_backends: whether machine, versions and what runs compiled networks are those of
    then. judged_as_then: whether the rule and
    the gate's limits had to be taken from the manifest, for the calibration of then is not here.
    max_difference: largest difference of a colour value, of 255, and share: how many values differ, both between the
    saved picture and the new one; None where no saved picture of that size was at hand.
    """

    same: dict[str, bool]
    same_machine: bool
    same_libraries: bool
    same_backends: bool = True
    judged_as_then: bool = False
    max_difference: int | None = None
    share: float | None = None

    @property
    def identical(self) -> bool:
        """Whether everything that was compared is the same."""
        return all(self.same.values())

    def __str__(self) -> str:
        """Say in a sentence what is the same and how far the rest differs."""
        machine = "the same kind of machine" if self.same_machine else "another kind of machine"
        machine += "" if self.same_libraries else " with other libraries"
        machine += "" if self.same_backends else " on another backend"
        judged = "; judged by the limits of then, whose calibration is not here" if self.judged_as_then else ""
        if self.identical:
            return f"identical in {', '.join(self.same)}, on {machine}{judged}"
        differs = ", ".join(name for name, same in self.same.items() if not same)
        extent = ""
        if self.max_difference is not None and self.share is not None:
            extent = f"; the image by at most {self.max_difference} of 255, in {self.share:.2%} of its values"
        return f"NOT identical, on {machine}: differs in {differs}{extent}{judged}"


def replay(
    manifest: Manifest,
    engine: Engine,
    saved: Image.Image | None = None,
    source: Image.Image | None = None,
    mask: np.ndarray | None = None,
    controls: Mapping[str, Image.Image] = MappingProxyType({}),
) -> Replay:
    """Generate the manifest's image again and compare everything that the manifest says of it.

    Rule and gate are found again from the request and the calibration; where that of then is not here, the manifest's
    own are taken. saved: the picture as it was written. source, mask, controls by ControlNet: what the user brought.
    Raises CheckpointError for another model than the manifest's, InvalidRequestError for another source, mask,
    registry, bank or measure, or an image that the request does not have.
    """
    _check_model(manifest, engine)
    _check_registry(manifest, engine)
    _check_bank(manifest, engine)
    _check_metrics(manifest, engine)
    _check_input("source", manifest.source, source)
    _check_input("mask", manifest.mask, mask)
    for name in sorted(manifest.controls.keys() | controls.keys()):
        _check_input(f"control {name}", manifest.controls.get(name), controls.get(name))
    if not 0 <= manifest.index < manifest.request.num_images:
        raise InvalidRequestError(f"the manifest is of image {manifest.index + 1} of {manifest.request.num_images}")
    calibration = engine.components.calibration
    judged_as_then = manifest.calibration != (None if calibration is None else calibration.version)
    asked = tuple(each.model_copy(update={"image": controls.get(each.name)}) for each in manifest.request.controls)
    changes: dict[str, Any] = {"source": source, "mask": mask, "controls": asked}
    changes |= _judged_as_then(manifest) if judged_as_then else {}
    if manifest.parsed is None:
        changes["prompt_syntax"] = PromptSyntax.PLAIN  # as every prompt was read when it was written
    result = engine.generate(manifest.request.model_copy(update=changes))[manifest.index]
    machine = Machine.here(ModelRecord.of(engine.components).device)
    return replace(compare(manifest, result, machine, saved), judged_as_then=judged_as_then)


def _judged_as_then(manifest: Manifest) -> dict[str, Any]:
    """Settings by which a request is judged as the manifest says that it was."""
    then, gate, decision = manifest.request.similarity, manifest.request.gate, manifest.gate
    similarity = SimilarityPolicy(rule=manifest.rule, early=then.early, early_stops=then.early_stops)
    if gate is not None and decision is not None:
        limits = {name: score.limit for name, score in decision.signals.items() if score.limit is not None}
        gate = gate.model_copy(update={"limits": limits or None})
    return {"similarity": similarity, "gate": gate}


def compare(manifest: Manifest, result: GenerationResult, machine: Machine, saved: Image.Image | None = None) -> Replay:
    """Compare the `result` replayed on `machine` with what `manifest` says, and with the `saved` picture if any.

    A picture that the manifest names and that is not given differs. Scores are compared within `SCORE_TOLERANCE` on
    another machine or with other libraries.
    """
    here = libraries()
    same_machine, same_libraries = manifest.machine == machine, manifest.libraries == here
    # Which networks were called before differs from run to run; what runs them does not.
    same_backends = set(manifest.backends.values()) == set(result.backends.values())
    exact = same_machine and same_libraries and same_backends
    before, now = manifest.hashes.model_dump(), Hashes.of(result).model_dump()
    same = {name: before[name] == now[name] for name in before if (before[name], now[name]) != (None, None)}
    if manifest.image is not None or saved is not None:
        same["saved picture"] = saved is not None and pixel_hash(saved) == manifest.hashes.image
    if manifest.libraries.get("twig-engine") == here["twig-engine"]:  # another version's requests have other settings
        same["request"] = manifest.request_sha256 == request_hash(manifest.request)
    if manifest.parsed is not None:
        same["reading of the prompts"] = manifest.parsed == PromptRecord.of(result)
    same |= {name: getattr(manifest, name) == getattr(result, name) for name in ("verdict", "error", "rule")}
    same["scores"] = _same_scores(manifest, result, exact)
    same["attempts"] = _without_scores(manifest.attempts, exact) == _without_scores(result.attempts, exact)
    same["gate"] = _same_gate(manifest.gate, result.gate, exact)
    same["rows"] = (manifest.draft_rows, manifest.rows) == (result.draft_rows, result.rows)
    if saved is None or result.image is None or saved.size != result.image.size:
        return Replay(same, same_machine, same_libraries, same_backends)
    difference = np.abs(np.asarray(saved.convert("RGB"), np.int16) - np.asarray(result.image.convert("RGB"), np.int16))
    extent = int(difference.max()), float((difference > 0).mean())
    return Replay(same, same_machine, same_libraries, same_backends, max_difference=extent[0], share=extent[1])


def _same_scores(manifest: Manifest, result: GenerationResult, exact: bool) -> bool:
    pairs = zip(manifest.attempts, result.attempts, strict=False)
    return all(_alike(first.scores, second.scores, exact) for first, second in pairs)


def _alike(first: Mapping[str, Score], second: Mapping[str, Score], exact: bool) -> bool:
    """Whether two sets of measures, with their limits and what was made of them, are the same."""
    if first.keys() != second.keys():
        return False
    allowed = 0.0 if exact else SCORE_TOLERANCE
    return all(
        (score.limit, score.passed) == (second[name].limit, second[name].passed)
        and (
            math.isclose(score.value, second[name].value, rel_tol=allowed, abs_tol=allowed)
            or (math.isnan(score.value) and math.isnan(second[name].value))
        )
        for name, score in first.items()
    )


def _without_scores(attempts: Sequence[Attempt], exact: bool) -> list[Attempt]:
    """Attempts less their scores and, where these may differ in their last digits, the reasons that spell them."""
    return [replace(each, scores={}, reasons=each.reasons if exact else ()) for each in attempts]


def _same_gate(first: GateDecision | None, second: GateDecision | None, exact: bool) -> bool:
    if first is None or second is None:
        return first is second
    return replace(first, signals={}) == replace(second, signals={}) and _alike(first.signals, second.signals, exact)


def _check_model(manifest: Manifest, engine: Engine) -> None:
    recorded, loaded = (each.drawing(manifest.request) for each in (manifest.model, ModelRecord.of(engine.components)))
    for part in sorted(recorded.keys() | loaded.keys()):
        if recorded.get(part) != loaded.get(part):
            raise CheckpointError(
                f"this is not the manifest's model: its {part} has SHA-256 {recorded.get(part, 'none')[:16]}, "
                f"the one loaded {loaded.get(part, 'none')[:16]}"
            )


def _check_registry(manifest: Manifest, engine: Engine) -> None:
    """Other works would give other scores, and with them other retries."""
    found = engine.registry.version if engine.registry is not None else None
    if manifest.registry != found:
        raise InvalidRequestError(
            f"the manifest's picture was compared with registry {manifest.registry or 'none'}, this is "
            f"{found or 'none'}; name the one of then with --registry"
        )


def _check_bank(manifest: Manifest, engine: Engine) -> None:
    """Other shapes would make other maps, where maps were composed of them."""
    control, bank = manifest.request.avoidance.moved_control, engine.components.bank
    found = bank.version if bank is not None else None
    if control is not None and control.warp == Warp.BANK and manifest.bank != found:
        raise InvalidRequestError(
            f"the manifest's map was composed of bank {manifest.bank or 'none'}, this is {found or 'none'}; name the "
            "one of then with --bank"
        )


def _check_metrics(manifest: Manifest, engine: Engine) -> None:
    """Other weights would give other scores, wherever they lie."""
    wanted, found = (sorted(each.values()) for each in (manifest.metrics, engine.judge.weights))
    if wanted != found:
        raise InvalidRequestError(
            f"the manifest's picture was measured by {', '.join(manifest.metrics) or 'no further measures'}, "
            "with weights of other digests than are here; name those of then with --metric"
        )


def _check_input(name: str, recorded: InputRecord | None, given: Image.Image | np.ndarray | None) -> None:
    found = None if given is None else pixel_hash(given)
    wanted = None if recorded is None else recorded.sha256
    if found != wanted:
        raise InvalidRequestError(
            f"this is not the manifest's {name}: its pixels have SHA-256 {wanted or 'none'}, "
            f"those given {found or 'none'}"
        )

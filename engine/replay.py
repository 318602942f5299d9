"""Replay: make a manifest's picture again and say whether it is the same."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .api.errors import CheckpointError, InvalidRequestError
from .api.request import Gate, SimilarityPolicy
from .api.result import GenerationResult
from .engine import Engine
from .records.manifest import Hashes, InputRecord, Machine, Manifest, ModelRecord, pixel_hash


@dataclass(frozen=True)
class Replay:
    """How a regenerated result compares with its manifest.

    same: by name of the picture (draft, mask, label_map, control_map, image), whether its pixels are identical.
    max_difference: largest difference of a colour value, of 255, and share: how many values differ, both between the
    saved picture and the new one; None where no saved picture of that size was at hand.
    """

    same: dict[str, bool]
    same_verdict: bool
    same_machine: bool
    max_difference: int | None = None
    share: float | None = None

    @property
    def identical(self) -> bool:
        """Whether every picture and the verdict are the same."""
        return self.same_verdict and all(self.same.values())

    def __str__(self) -> str:
        """Say in a sentence what is the same and how far the rest differs."""
        machine = "the same kind of machine" if self.same_machine else "another kind of machine"
        if self.identical:
            return f"identical in {', '.join(self.same)} and verdict, on {machine}"
        differs = [name for name, same in self.same.items() if not same] + ["verdict"] * (not self.same_verdict)
        extent = ""
        if self.max_difference is not None and self.share is not None:
            extent = f"; the image by at most {self.max_difference} of 255, in {self.share:.2%} of its values"
        return f"NOT identical, on {machine}: differs in {', '.join(differs)}{extent}"


def replay(
    manifest: Manifest,
    engine: Engine,
    saved: Image.Image | None = None,
    source: Image.Image | None = None,
    mask: np.ndarray | None = None,
) -> Replay:
    """Generate the manifest's image again, under the rule of then, and compare.

    saved: the picture as it was written, to say how far a different one is. source, mask: what the user brought.
    Raises CheckpointError for another model than the manifest's, InvalidRequestError for another source, mask or
    registry.
    """
    _check_model(manifest, engine)
    _check_registry(manifest, engine)
    _check_input("source", manifest.source, source)
    _check_input("mask", manifest.mask, mask)
    then = manifest.request.similarity
    similarity = SimilarityPolicy(rule=manifest.rule, early=then.early, early_stops=then.early_stops)
    changes = {"source": source, "mask": mask, "similarity": similarity, "gate": _gate_of_then(manifest)}
    request = manifest.request.model_copy(update=changes)
    machine = Machine.here(ModelRecord.of(engine.components).device)
    return compare(manifest, engine.generate(request)[manifest.index], machine, saved)


def _gate_of_then(manifest: Manifest) -> Gate | None:
    """The request's gate with the limits it had."""
    gate, decision = manifest.request.gate, manifest.gate
    if gate is None or decision is None:
        return gate
    limits = {name: score.limit for name, score in decision.signals.items() if score.limit is not None}
    return gate.model_copy(update={"limits": limits or None})


def compare(manifest: Manifest, result: GenerationResult, machine: Machine, saved: Image.Image | None = None) -> Replay:
    """Compare the `result` replayed on `machine` with what `manifest` says, and with the `saved` picture if any."""
    before, now = manifest.hashes.model_dump(), Hashes.of(result).model_dump()
    same = {name: before[name] == now[name] for name in before if (before[name], now[name]) != (None, None)}
    same_verdict = manifest.verdict == result.verdict
    same_machine = manifest.machine == machine
    if saved is None or result.image is None or saved.size != result.image.size:
        return Replay(same, same_verdict, same_machine)
    difference = np.abs(np.asarray(saved.convert("RGB"), np.int16) - np.asarray(result.image.convert("RGB"), np.int16))
    return Replay(same, same_verdict, same_machine, int(difference.max()), float((difference > 0).mean()))


def _check_model(manifest: Manifest, engine: Engine) -> None:
    recorded, loaded = manifest.model.hashes, engine.components.hashes
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


def _check_input(name: str, recorded: InputRecord | None, given: Image.Image | np.ndarray | None) -> None:
    found = None if given is None else pixel_hash(given)
    wanted = None if recorded is None else recorded.sha256
    if found != wanted:
        raise InvalidRequestError(
            f"this is not the manifest's {name}: its pixels have SHA-256 {wanted or 'none'}, "
            f"those given {found or 'none'}"
        )

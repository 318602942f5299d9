"""Clean populations that limits are calibrated on: pictures that are no copies of what they are compared with."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..api.calibration import Calibration, calibrate
from ..api.errors import InvalidRequestError
from ..api.event import Event
from ..api.mechanisms import Avoidance
from ..api.pixels import load_picture
from ..api.reading import MAX_PICTURE, read_bytes
from ..api.request import Gate, GenerationRequest, SimilarityPolicy
from ..api.result import GenerationResult
from ..api.settings import Stage
from ..engine import Engine
from ..judging.gate import LISTENING
from ..judging.registry import cropped_pixels, pictures_in
from .shapes import Drafted, drafted

JUDGED = ("ssim_masked", "ms_ssim", "tile_l2", "mask_iou")
"""Measures that are calibrated unless others are named: those that tell near copies from fresh pictures best."""

ACCEPT = SimilarityPolicy(rule="accept everything")

_CHUNK = 16


@dataclass(frozen=True)
class Population:
    """What was measured on clean pictures.

    description: what they are, in words. sha256: digest of what they were made from. scores: by metric, one value a
    pair. signals: by gate signal, one value a draft. drafts: the shapes of those that show what their captions name.
    """

    description: str
    sha256: str
    scores: dict[str, list[float]]
    signals: dict[str, list[float]] = field(default_factory=dict)
    drafts: tuple[Drafted, ...] = field(default=(), compare=False)

    @property
    def count(self) -> int:
        """Number of pairs."""
        return max(map(len, self.scores.values()), default=0)


def generated(
    engine: Engine,
    captions: Sequence[str],
    per_caption: int,
    stage: Stage,
    seed: int = 0,
    on_event: Callable[[Event], None] | None = None,
) -> Population:
    """Draw each caption `per_caption` times under no avoidance, each time a draft and a final from another seed.

    The captions should be of things the model knows and has not memorised. Raises InvalidRequestError where there are
    none or one cannot be drawn.
    """
    if not captions:
        raise InvalidRequestError("there are no captions to draw; give at least one, one a line")
    requests = [
        GenerationRequest(
            prompt=caption,
            seed=_seed(seed, number),
            draft=stage,
            final=stage,
            avoidance=Avoidance.off(),
            gate=Gate(limits=LISTENING, deliver_draft=False),
            similarity=ACCEPT,
        )
        for number, caption in enumerate(caption for caption in captions for _ in range(per_caption))
    ]
    results = engine.generate(requests, on_event)
    if failed := [result for result in results if result.error is not None]:
        raise InvalidRequestError(f"{failed[0].request.prompt!r} could not be drawn: {failed[0].error}")
    stage = results[0].request.draft  # with the model's own solver where none was named
    described = f"{len(results)} pairs generated from {len(captions)} captions, {stage.steps} steps of {stage.solver}"
    digest = _digest(
        [engine.components.hashes["unet"], stage.model_dump_json(), str(seed), str(per_caption), *captions]
    )
    segmenter = engine.components.segmenter
    drafts = tuple(drafted(results, segmenter)) if segmenter is not None else ()
    return Population(described, digest, _columns(results), _signals(results), drafts)


def unrelated(engine: Engine, folder: Path, pairs: int = 2000, seed: int = 0) -> Population:
    """Compare pictures of a folder that have nothing to do with one another, in at most `pairs` random pairs.

    Raises InvalidRequestError for fewer than two pictures.
    """
    paths = pictures_in(folder)
    if len(paths) < 2:
        raise InvalidRequestError(f"{folder} holds {len(paths)} pictures; at least two are compared with one another")
    pixels = torch.cat([cropped_pixels(load_picture(path), engine.components.size) for path in paths])
    chosen = _pairs(len(paths), pairs, seed)
    judging = engine.judge
    rows: list[dict[str, float]] = []
    for first in range(0, len(chosen), _CHUNK):
        finals, references = (pixels[chosen[first : first + _CHUNK, side]] for side in (0, 1))
        measured = judging.compare(finals, references)
        rows += [{name: value for name, value in each.values.items() if value is not None} for each in measured]
    hashes = [hashlib.sha256(read_bytes(path, MAX_PICTURE)).hexdigest() for path in paths]
    described = f"{len(chosen)} pairs of {len(paths)} unrelated pictures"
    return Population(described, _digest([str(seed), *hashes]), {name: [row[name] for row in rows] for name in rows[0]})


def calibrated(
    engine: Engine, populations: Sequence[Population], metrics: Sequence[str] | None = None, quantile: float = 0.999
) -> Calibration:
    """Limits that `quantile` of the populations keeps, all pairs counting alike; the gate's from their drafts.

    metrics: what is judged by, `JUDGED` where None. Raises InvalidRequestError for one that was not measured.
    """
    directions = engine.judge.directions
    known = set.intersection(*(set(population.scores) for population in populations))
    chosen = list(metrics) if metrics is not None else [name for name in JUDGED if name in known]
    if unknown := sorted(set(chosen) - known):
        raise InvalidRequestError(f"unknown metric {unknown[0]!r}; measured: {', '.join(sorted(known))}")
    return calibrate(
        {name: [value for population in populations for value in population.scores[name]] for name in chosen},
        " and ".join(population.description for population in populations),
        quantile=quantile,
        directions=directions,
        population_sha256=_digest([population.sha256 for population in populations]),
        signals=_merged([population.signals for population in populations]),
    )


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint32)[0])


def _pairs(count: int, wanted: int, seed: int) -> np.ndarray:
    """Distinct pairs (N, 2) of `count` things, all where there are no more than `wanted`, else drawn at random."""
    first, second = np.triu_indices(count, k=1)
    every = np.stack([first, second], 1)
    if len(every) <= wanted:
        return every
    return every[np.random.default_rng(seed).choice(len(every), wanted, replace=False)]


def _columns(results: Sequence[GenerationResult]) -> dict[str, list[float]]:
    return {name: [result.scores[name].value for result in results] for name in results[0].scores}


def _signals(results: Sequence[GenerationResult]) -> dict[str, list[float]]:
    decisions = [result.gate for result in results if result.gate is not None]
    values = {name: [each.signals[name].value for each in decisions] for name in decisions[0].signals}
    return {name: column for name, column in values.items() if np.isfinite(column).all()}


def _merged(signals: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    names = {name for each in signals for name in each}
    return {name: [value for each in signals for value in each.get(name, [])] for name in sorted(names)}


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()

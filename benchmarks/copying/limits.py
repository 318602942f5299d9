"""The embedded model's limits: `python -m twig.benchmarks.copying.limits`.

A final may be as similar to its draft as unrelated pictures of one caption are by chance, and a draft looks recalled
where its signals pass those of captions that name no source.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import ArrayLike

from ...engine.api.calibration import Calibration, calibrate
from ...engine.api.mechanisms import Avoidance
from ...engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from ...engine.api.result import GenerationResult
from ...engine.avoidance.objects import objects_of
from ...engine.avoidance.words import lexicon
from ...engine.engine import Engine
from ...engine.judging.gate import AGREEMENT, LISTENING
from ...engine.judging.objects import colours_kept
from ...engine.judging.similarity import measure
from ...engine.models.checkpoint import EMBEDDED
from ..options import DeviceOption
from .data import sources
from .measures import same_caption, to_tensor
from .methods import Bed
from .scenes import CLASSES, Scene, random_scene, render

GATES = ("ssim_masked", "ms_ssim", "tile_l2", "mask_iou")
"""Measures the embedded model's finals are held to: those that tell near copies from fresh pictures best."""

_NAMES = ("background", *CLASSES)
_CHUNK = 250
_SIGNALS = ("guidance", AGREEMENT)


def embedded_limits(
    pairs: int = 4000, quantile: float = 0.999, signals: Mapping[str, ArrayLike] | None = None
) -> Calibration:
    """Calibrate on pairs of fresh scenes that share a caption: a final that is no copy is such a scene to its draft.

    signals: of clean drafts, which the gate is calibrated on; there is no gate without them.
    """
    rng = np.random.default_rng(37)
    scores: dict[str, list[np.ndarray]] = {name: [] for name in GATES}
    colours: list[float] = []
    for _ in range(pairs // _CHUNK):
        drafts = [random_scene(rng) for _ in range(_CHUNK)]
        finals = [same_caption(scene, rng) for scene in drafts]
        (draft_pixels, draft_labels), (final_pixels, final_labels) = (
            zip(*(render(scene) for scene in scenes), strict=True) for scenes in (drafts, finals)
        )
        colours += [_colours(*drawn) for drawn in zip(finals, final_pixels, final_labels, strict=True)]
        masks, final_masks = (torch.from_numpy(np.stack(labels) > 0) for labels in (draft_labels, final_labels))
        values = measure(to_tensor(final_pixels), to_tensor(draft_pixels), masks, final_masks=final_masks)
        for name in GATES:
            scores[name].append(values[name].numpy())
    population = f"{pairs} pairs of procedural scenes that share a caption"
    # A scene shows all of its objects and no other, and so must a final those of the map that it follows.
    scores["classes_kept"] = [np.ones(pairs // _CHUNK * _CHUNK)]
    scores["colours_kept"] = [np.array(colours)]
    if signals:
        population += f", and {len(np.asarray(next(iter(signals.values()))))} drafts of fresh captions"
    columns = {name: np.concatenate(found) for name, found in scores.items()}
    return calibrate(columns, population, quantile=quantile, signals=signals)


def _colours(scene: Scene, pixels: np.ndarray, labels: np.ndarray) -> float:
    """How much of its colour the object of a scene has that has least of it."""
    named = lexicon(_NAMES, frozenset({0})).read(scene.caption)
    found = colours_kept(pixels, objects_of(labels, {0}), named, _NAMES)
    assert found is not None
    return found[0]


def clean_drafts(engine: Engine, drafts: int, first_seed: int = 0) -> list[GenerationResult]:
    """Drafts of captions that name no source, half with one object and half with two, by a gate that only listens."""
    requests = [
        GenerationRequest(
            prompt=caption,
            seed=first_seed + number,
            avoidance=Avoidance.off(),
            gate=Gate(limits=LISTENING),
            similarity=SimilarityPolicy(limits={}, retries=0),
        )
        for number, caption in enumerate(ordinary_captions(drafts))
    ]
    return engine.generate(requests)


def clean_signals(engine: Engine, drafts: int) -> dict[str, list[float]]:
    """What the gate sees in `clean_drafts`."""
    decisions = [result.gate for result in clean_drafts(engine, drafts)]
    return {name: [each.signals[name].value for each in decisions if each is not None] for name in _SIGNALS}


def ordinary_captions(count: int) -> list[str]:
    """Captions of `ordinary_scenes`."""
    return [scene.caption for scene in ordinary_scenes(count, 61)]


def ordinary_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes with one object and with two in turn, whose captions no source and no template was trained under."""
    rng, known = np.random.default_rng(seed), sources()
    scenes = (random_scene(rng, num_objects=1 + number % 2) for number in itertools.count())
    return list(itertools.islice((s for s in scenes if not any(source.named_by(s) for source in known)), count))


def main(
    out: Annotated[Path, typer.Option(help="File to write.")] = EMBEDDED / "calibration.json",
    drafts: Annotated[int, typer.Option(help="Drafts of fresh captions that the gate is calibrated on.")] = 2000,
    model: Annotated[Path, typer.Option(help="Model folder; the embedded model.", show_default=False)] = EMBEDDED,
    backend: Annotated[str, typer.Option(help="What runs the networks.")] = "torch",
    device: DeviceOption = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Calibrate the embedded model's limits and its gate."""
    torch.set_num_threads(threads)
    signals = clean_signals(Bed(model, backend, device=device).engine(), drafts)
    embedded_limits(signals=signals).save(out)


if __name__ == "__main__":
    typer.run(main)

"""A pilot study: how close a model's pictures come to protected works, with avoidance and without.

Every prompt is drawn from the same seeds under each policy, and each picture is held against the work it is nearest to.
What counts as close is found on clean pairs: works that are not copies of each other, and plain pictures of different
prompts; where there are too few of them, it is what the model's own limits say. Nothing is refused during the study, so
that it shows what a judge would have to refuse.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage.filters import laplace
from torch import Tensor

from ..api.calibration import calibrate
from ..api.errors import InvalidRequestError
from ..api.event import Event
from ..api.mechanisms import Avoidance
from ..api.metrics import ALL_METRICS
from ..api.presets import Bundle
from ..api.reading import read_lines, reading, shown
from ..api.request import GenerationRequest, SimilarityPolicy
from ..api.result import GenerationResult
from ..api.settings import Stage
from ..engine import Engine
from ..judging.works import Works, measured, shapes
from ..models.pictures import to_pixels
from .limits import MOST_PAIRS, PAIRS_NEEDED, QUANTILE, StudyLimits, pair_count

JUDGED = ("ssim", "ssim_masked", "ssim_masked_aligned", "ms_ssim", "tile_l2", "phash")
"""Measures that limits are recommended for."""

_CHUNK = 64
_WARM_UP = 2  # requests, and steps of each, that the speed is measured on


@dataclass(frozen=True)
class Picture:
    """One picture of the study, a row of its data.

    preset: policy's name. nearest: the work it is closest to, with `measures` against that. sharpness: variance of the
    Laplacian. labels_kept: overlap of the sets of labels that its draft and it show, NaN without a segmenter. rows: of
    the UNet, without the draft where nothing looks at it; seconds: of one machine, a batch shared evenly.
    """

    prompt: int
    seed: int
    preset: str
    nearest: str
    measures: dict[str, float]
    sharpness: float
    labels_kept: float
    rows: int
    seconds: float

    def crossed(self, limits: Mapping[str, float]) -> list[str]:
        """Measures by which it is closer to its nearest work than the limits allow."""
        return [name for name, limit in limits.items() if _beyond(name, self.measures[name], limit)]

    def as_row(self) -> dict[str, object]:
        """The row, as JSON takes it."""
        return asdict(self)


def _beyond(name: str, value: float, limit: float) -> bool:
    return value > limit if ALL_METRICS[name].direction == "similarity" else value < limit


@dataclass(frozen=True)
class Plan:
    """What a study draws: each prompt from each seed under each policy, by the policy's name.

    The first policy is the plain one that the others are compared with. steps: of drafts and finals, as always if None.
    """

    prompts: tuple[str, ...]
    policies: Mapping[str, Bundle]
    seeds: int = 4
    steps: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidRequestError for a study that would draw nothing."""
        if not self.prompts or not self.policies or self.seeds < 1:
            raise InvalidRequestError("a study needs at least one prompt, one policy and one seed")

    def requests(self, policy: str) -> list[GenerationRequest]:
        """Requests of a policy, prompt by prompt."""
        bundle, accepting = self.policies[policy], SimilarityPolicy(limits={}, retries=0)
        stage = Stage() if self.steps is None else Stage(steps=self.steps)
        return [
            GenerationRequest(
                prompt=prompt,
                seed=seed,
                **bundle.stages(stage),
                avoidance=bundle.avoidance,
                gate=bundle.gate,
                similarity=accepting,
            )
            for prompt in self.prompts
            for seed in range(self.seeds)
        ]


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts of a text file, one a line; empty lines and those that begin with # are left out.

    Raises InvalidRequestError for a file without prompts or that is no text.
    """
    with reading(path, "no text of prompts"):
        lines = read_lines(path)
    prompts = tuple(dict.fromkeys(line for line in lines if not line.startswith("#")))
    if not prompts:
        raise InvalidRequestError(f"{shown(path)} holds no prompt; write one a line")
    return prompts


@dataclass
class Assessment:
    """A study: its engine, works and plan, and the pictures drawn so far with their rows."""

    engine: Engine
    works: Works
    plan: Plan
    pictures: list[Picture] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)

    def rows(self) -> int:
        """Rows of the UNet that the whole study costs at most: a gate that stays shut spares some.

        Raises InvalidRequestError for what this model cannot draw.
        """
        return sum(self.engine.estimate(each) for policy in self.plan.policies for each in self.plan.requests(policy))

    def rows_per_second(self) -> float:
        """Measure this engine's speed on a short warm-up; fuller batches may go faster."""
        plan = replace(self.plan, steps=min(_WARM_UP, self.plan.steps or _WARM_UP))
        self.engine.generate(plan.requests(next(iter(plan.policies)))[:_WARM_UP])
        return self.engine.rows_per_second

    def pairs_planned(self) -> int:
        """Clean pairs that there will be once everything is drawn."""
        prompts = [prompt for prompt in self.plan.prompts for _ in range(self.plan.seeds)]
        return pair_count(self.works.names) + pair_count(prompts)

    def run(self, on_event: Callable[[Event], None], keep: Callable[[Picture], None]) -> None:
        """Draw policy after policy; `keep` is given each picture's row once its batch is measured."""
        for policy in self.plan.policies:
            requests = self.plan.requests(policy)
            for first in range(0, len(requests), _CHUNK):
                began = time.perf_counter()
                results = self.engine.generate(requests[first : first + _CHUNK], on_event)
                seconds = (time.perf_counter() - began) / len(results)
                for picture in self._measured(policy, results, seconds):
                    keep(picture)

    def _measured(self, policy: str, results: Sequence[GenerationResult], seconds: float) -> Iterator[Picture]:
        drawn = [(result, result.image) for result in results if result.image is not None]
        if not drawn:
            return
        pixels = torch.cat([to_pixels(image, image.height, image.width) for _, image in drawn])
        for (result, image), found, (work, values) in zip(
            drawn, self._labels(pixels), self.works.nearest(pixels), strict=True
        ):
            # A plain picture does not look at its draft and is not charged for it.
            needed = result.rows - (result.draft_rows if result.request.avoidance == Avoidance.off() else 0)
            picture = Picture(
                prompt=self.plan.prompts.index(result.request.prompt),
                seed=result.request.seed,
                preset=policy,
                nearest=self.works.names[work],
                measures=values,
                sharpness=float(laplace(np.asarray(image.convert("L"), np.float64) / 255).var()),
                labels_kept=_kept(result.label_map, found),
                rows=needed,
                seconds=seconds * needed / result.rows,
            )
            self.pictures.append(picture)
            self.images.append(image)
            yield picture

    def _labels(self, pixels: Tensor) -> Sequence[np.ndarray | None]:
        segmenter = self.engine.components.segmenter
        return [None] * len(pixels) if segmenter is None else list(segmenter(pixels).cpu().numpy())

    def limits(self) -> StudyLimits:
        """Limits which 99.9 % of clean pairs keep, where there are enough of them; else the model's own.

        Clean pairs are works that are not copies of each other, and plain pictures of different prompts.
        """
        plain = [picture.prompt for picture in self._plain()]
        pairs = pair_count(self.works.names) + pair_count(plain)
        if pairs < PAIRS_NEEDED:
            return StudyLimits(self.engine.components.calibration, False, pairs)
        works = _clean_pairs(self.works.pixels, self.works.masks, range(len(self.works.names)))
        found = [pair for pair in (works, self._plain_pairs()) if pair]
        scores = {name: np.concatenate([pair[name] for pair in found]) for name in JUDGED}
        population = f"{len(self.works.names)} works against each other, and plain pictures of different prompts"
        return StudyLimits(calibrate(scores, population, quantile=QUANTILE), True, pairs)

    def _plain(self) -> list[Picture]:
        plain = next(iter(self.plan.policies))
        return [picture for picture in self.pictures if picture.preset == plain]

    def _plain_pairs(self) -> dict[str, np.ndarray]:
        plain = next(iter(self.plan.policies))
        chosen = [i for i, picture in enumerate(self.pictures) if picture.preset == plain]
        if not chosen:
            return {}
        pixels = torch.cat([to_pixels(self.images[i], *self.works.pixels.shape[-2:]) for i in chosen])
        masks = shapes(pixels, self.engine.components.segmenter)
        return _clean_pairs(pixels, masks, [self.pictures[i].prompt for i in chosen])


def _clean_pairs(pixels: Tensor, masks: Tensor, groups: Sequence[int]) -> dict[str, np.ndarray]:
    """Measures of pairs from different groups, at most `MOST_PAIRS` of them; nothing where there is no such pair."""
    pairs = [(a, b) for a, b in combinations(range(len(groups)), 2) if groups[a] != groups[b]]
    pairs = random.Random(0).sample(pairs, min(MOST_PAIRS, len(pairs)))
    if not pairs:
        return {}
    finals, references = (list(side) for side in zip(*pairs, strict=True))
    values = measured(pixels[finals], pixels[references], masks[references])
    return {name: values[name].numpy() for name in JUDGED}


def _kept(drafted: np.ndarray | None, found: np.ndarray | None) -> float:
    """Intersection over union of the sets of labels in the draft and in the final."""
    if drafted is None or found is None:
        return float("nan")
    before, after = (_labels_of(labels) for labels in (drafted, found))
    return len(before & after) / len(before | after)


def _labels_of(labels: np.ndarray) -> set[int]:
    """Labels that cover at least a hundredth of the picture."""
    names, counts = np.unique(labels, return_counts=True)
    return {int(name) for name, count in zip(names, counts, strict=True) if count * 100 >= labels.size}

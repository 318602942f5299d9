"""What a method is: how it draws a caption's pictures, on which engine, and what that costs.

Every method draws with the same network, solver and steps, and is counted in rows of the UNet. The strengths of a
method trace its curve from faithful to cautious.
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from ...engine.api.mechanisms import Avoidance
from ...engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from ...engine.api.result import GenerationResult, Verdict
from ...engine.api.settings import Stage
from ...engine.backends.options import TorchOptions
from ...engine.batching.scheduler import Limits
from ...engine.engine import Engine
from ...engine.models import layout
from ...engine.models.checkpoint import EMBEDDED, Components, load
from .scenes import Scene

STEPS = 20
GUIDANCE = 5.0
ANY = SimilarityPolicy(limits={}, retries=0)
"""Accept whatever comes."""

UNLOOKED = Stage(steps=1, guidance_scale=1)
"""A draft that nothing looks at: one row."""


@dataclass(frozen=True)
class Drawing:
    """Pictures of a cell (N of them), and what they cost.

    pictures (N, 64, 64, 3) uint8; delivered (N,) bool: not refused; draft_rows (N,) and attempt_rows (N, A) int:
    rows of the UNet, of the draft with the gate's witnesses and of each attempt; attempts (N,) int: how many there
    were; avoided (N,) bool: whether the gate, where there was one, found the draft recalled.
    """

    pictures: np.ndarray
    delivered: np.ndarray
    draft_rows: np.ndarray
    attempt_rows: np.ndarray
    attempts: np.ndarray
    avoided: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Rows of the UNet for each picture, (N,)."""
        return self.draft_rows + self.attempt_rows.sum(1)

    def with_attempts(self, most: int) -> "Drawing":
        """What the same run delivers when it may try only `most` times."""
        return replace(
            self, delivered=self.delivered & (self.attempts <= most), attempt_rows=self.attempt_rows[:, :most]
        )


@dataclass(frozen=True)
class Bed:
    """The test bed's model, and the engines that its methods run on.

    A GPU computes in float32 as a CPU does, its inputs not rounded, so that both draw the same pictures.
    """

    model: Path = EMBEDDED
    backend: str = "torch"
    precision: str = "fp32"
    device: str = "cpu"
    slots: int = 32
    _engines: dict[tuple[object, ...], Engine] = field(default_factory=dict, repr=False)

    @cached_property
    def components(self) -> Components:
        """The reciting model."""
        return load(self.model, device=self.device)

    @cached_property
    def twin(self) -> Components:
        """The same with the clean twin's UNet, which saw no source."""
        folder = self.model.parent / "clean_unet"
        unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32).to(self.device).eval()
        hashes = self.components.hashes | {"unet": layout.digest(folder)}
        return replace(self.components, unet=unet, hashes=hashes)

    def engine(self, kind: type[Engine] = Engine, *, twin: bool = False, **options: Any) -> Engine:
        """The engine of a kind, with `options` of that kind; made when first asked for.

        Plain engines stay. Of those that a published method changes only the last does, for each holds networks of its
        own, half a gigabyte where they are compiled.
        """
        key = (kind, twin, *options.values())
        if key not in self._engines:
            for other in [other for other in self._engines if kind is not Engine and other[0] is not Engine]:
                del self._engines[other]
            gc.collect()  # an engine's parts know each other, and what they hold is not Python's to weigh
            made = kind(
                self.twin if twin else self.components,
                limits=Limits(slots=self.slots, rows=self.slots),
                backend=self.backend,
                precision=self.precision,
                torch_options=TorchOptions(tf32=False),
                **options,
            )
            if made.graphs.enabled:
                made.warmup()
            self._engines[key] = made
        return self._engines[key]

    @property
    def described(self) -> str:
        """What its rows say that they were drawn by."""
        return " ".join((self.backend, self.precision, *(() if self.device == "cpu" else (self.device,))))


Change = Callable[[GenerationRequest, Scene], GenerationRequest]


@dataclass(frozen=True)
class Method:
    """One way to draw, at one strength.

    kind: engine it runs on, with `options`. change: what else it makes of each request, given the scene its caption
    describes. looks: whether it makes use of a draft. draft_steps: of that draft; redraft: of the one after a final
    that lost an object. draft, final: fields in which these stages differ. attempts: numbers of attempts at which the
    same run is counted, each as a strength of its own.
    """

    name: str
    strength: float = 0.0
    avoidance: Avoidance = field(default_factory=Avoidance.off)
    similarity: SimilarityPolicy = ANY
    gate: Gate | None = None
    guidance: float = GUIDANCE
    kind: type[Engine] = Engine
    options: tuple[tuple[str, float], ...] = ()
    twin: bool = False
    change: Change | None = None
    looks: bool = False
    draft_steps: int = STEPS
    redraft: int | None = None
    draft: Mapping[str, Any] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    attempts: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Name and strength, fit for a file's name."""
        return f"{self.name}-{self.strength:g}".replace(" ", "_")

    def draw(self, bed: Bed, captions: Sequence[str], scenes: Sequence[Scene], seeds: Sequence[int]) -> Drawing:
        """One final for each caption and seed; scenes as their captions describe them."""
        engine = bed.engine(self.kind, twin=self.twin, **dict(self.options))
        drawn = zip(captions, scenes, seeds, strict=True)
        return _drawing(engine.generate([self.request(caption, scene, seed) for caption, scene, seed in drawn]))

    def request(self, caption: str, scene: Scene, seed: int) -> GenerationRequest:
        """What the engine is asked for."""
        final = Stage(**{"steps": STEPS, "guidance_scale": self.guidance, **self.final})
        drafted = Stage(**{"steps": self.draft_steps, "guidance_scale": GUIDANCE, **self.draft})
        plain = GenerationRequest(
            prompt=caption,
            seed=seed,
            draft=drafted if self.looks else UNLOOKED,
            final=final,
            redraft=self.redraft,
            avoidance=self.avoidance,
            similarity=self.similarity,
            gate=self.gate,
        )
        return plain if self.change is None else self.change(plain, scene)

    def views(self, drawing: Drawing) -> Iterator[tuple[float, Drawing]]:
        """Strengths that one run gives, with what each delivers."""
        if not self.attempts:
            yield self.strength, drawing
        for most in self.attempts:
            yield float(most), drawing.with_attempts(most)


def _drawing(results: Sequence[GenerationResult]) -> Drawing:
    failed = [result for result in results if result.image is None]
    if failed:
        raise RuntimeError(f"{failed[0].request.prompt!r} {failed[0].verdict}: {failed[0].error}")
    most = max(len(result.attempts) for result in results)
    spent = [[a.rows for a in result.attempts] + [0] * (most - len(result.attempts)) for result in results]
    return Drawing(
        np.stack([np.asarray(result.image) for result in results]),
        np.array([result.verdict is Verdict.ACCEPTED for result in results]),
        np.array([result.rows - sum(attempt.rows for attempt in result.attempts) for result in results]),
        np.array(spent),
        np.array([len(result.attempts) for result in results]),
        np.array([result.gate is None or result.gate.opened for result in results]),
    )

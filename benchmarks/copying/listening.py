"""What an ear at a draft can hear of recitation: numbers of its steps, which the signals are made from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ...engine.api.event import State
from ...engine.api.mechanisms import Avoidance
from ...engine.api.request import Gate, GenerationRequest
from ...engine.api.settings import Stage
from ...engine.batching.job import Job
from ...engine.engine import Engine
from ...engine.judging.gate import AGREEMENT, LISTENING
from .baselines.ending import end_attention
from .baselines.steering import Steered, Taken, conditional_text, unconditional_text
from .methods import ANY, GUIDANCE, STEPS

QUIET = -3
"""Step whose noise level a draft's first latent is shown at, to see how the network leans where noise is low."""


@dataclass
class Trace:
    """What was heard of one draft of S steps.

    guidance, agreement: today's signals. updates (S,): root mean square of each update of the latent. leanings (S,):
    cosine of each step's unconditional prediction and guidance, over channels, mean over pixels. first: size of the
    first step's guidance. leaning: that cosine for the first latent at the noise level of step `QUIET`. ending, last:
    largest attention of a pixel to the end token, and to the last position, in the last step, mean over layers. local
    (S,): size of each step's guidance, weighted by the attention to the end token.
    """

    guidance: float = np.nan
    agreement: float = np.nan
    updates: list[float] = field(default_factory=list)
    leanings: list[float] = field(default_factory=list)
    first: float = np.nan
    leaning: float = np.nan
    ending: float = np.nan
    last: float = np.nan
    local: list[float] = field(default_factory=list)

    def numbers(self) -> dict[str, Any]:
        """As a row holds it."""
        return {
            name: [round(v, 5) for v in value] if isinstance(value, list) else round(float(value), 5)
            for name, value in asdict(self).items()
        }


class ListeningEngine(Engine):
    """Keeps a trace of each draft, by request, until it is taken."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        ear = Ear(self.arenas, self.stages.denoising.decoder)
        ear.end_token = self.components.tokenizer.eos_token_id
        self.stages.denoising = self.ear = ear


class Ear(Steered):
    """Listens to drafts; changes nothing."""

    state = State.DRAFTING
    end_token: int | None = None

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.traces: dict[int, Trace] = {}
        self._guidance: dict[int, list[Tensor]] = {}

    def steer(self, taken: Sequence[Taken]) -> None:
        """Listen to a step of each draft; to its first and last with predictions besides."""
        for each in taken:
            trace = self.traces.setdefault(each.job.request_id, Trace())
            contrast = self.contrast(each).clone()
            self._guidance.setdefault(each.job.request_id, []).append(contrast)
            trace.updates.append(_size(self.update(each)))
            trace.leanings.append(leaning(self.unconditional(each), contrast))
        if first := [each for each in taken if each.number == 0]:
            self._hear_noise(first)
        if ending := [each for each in taken if each.number == len(each.run.plan) - 1]:
            self._hear_ending(ending)

    def _hear_noise(self, taken: Sequence[Taken]) -> None:
        """The first latent as if it held little noise: two rows."""
        quiet = [Taken(each.job, len(each.run.plan) + QUIET, each.latent) for each in taken]
        nothing = self.beside.predict(quiet, [unconditional_text(each.job) for each in taken])
        prompted = self.beside.predict(quiet, [conditional_text(each.job) for each in taken])
        for each, alone, asked in zip(taken, nothing, prompted, strict=True):
            trace = self.traces[each.job.request_id]
            trace.leaning = leaning(alone, asked - alone)
            trace.first = _size(self._guidance[each.job.request_id][0])

    def _hear_ending(self, taken: Sequence[Taken]) -> None:
        """Attention in the last step: a row, which serves both tokens' maps."""
        ends = [self._end_of(each.job) for each in taken]
        maps = end_attention(self.beside, taken, list(zip(ends, [-1] * len(ends), strict=True)))
        for each, layers in zip(taken, maps, strict=True):
            trace = self.traces[each.job.request_id]
            trace.ending, trace.last = layers.flatten(2).amax(2).mean(1).tolist()
            bright = layers[0].mean(0)
            weight = bright / bright.mean()
            trace.local = [_size(one * weight.sqrt()) for one in self._guidance.pop(each.job.request_id)]

    def _end_of(self, job: Job) -> int:
        return job.shared.input_ids.tolist().index(self.end_token)


def leaning(alone: Tensor, guidance: Tensor) -> float:
    """Cosine over channels of an unconditional prediction and guidance (C, h, w), mean over pixels."""
    return float(F.cosine_similarity(alone, guidance, dim=0).mean())


def _size(change: Tensor) -> float:
    return float(change.square().mean().sqrt())


def listen(engine: ListeningEngine, captions: Sequence[str], seeds: Sequence[int]) -> list[tuple[Trace, np.ndarray]]:
    """Draft each caption with its seed, with the gate's witnesses: what was heard, and the picture (H, W, 3) uint8."""
    stage = Stage(steps=STEPS, guidance_scale=GUIDANCE)
    requests = [
        GenerationRequest(
            prompt=caption,
            seed=seed,
            draft=stage,
            final=stage,
            avoidance=Avoidance.off(),
            gate=Gate(limits=LISTENING),
            similarity=ANY,
        )
        for caption, seed in zip(captions, seeds, strict=True)
    ]
    results = engine.generate(requests)
    traces = [trace for _, trace in sorted(engine.ear.traces.items())]
    engine.ear.traces.clear()
    for result, trace in zip(results, traces, strict=True):
        assert result.gate is not None
        trace.guidance = result.gate.signals["guidance"].value
        trace.agreement = result.gate.signals[AGREEMENT].value
    return [(trace, np.asarray(result.image)) for result, trace in zip(results, traces, strict=True)]

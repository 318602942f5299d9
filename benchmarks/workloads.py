"""What the benchmarks ask for: closed batches of equal requests, and mixed requests that arrive at random."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..engine.api.mechanisms import Avoidance, MovedControl
from ..engine.api.request import GenerationRequest, SimilarityPolicy
from ..engine.api.settings import Stage
from .copying.scenes import random_scene

SAME_WORK = Avoidance(delayed_guidance=None, moved_control=MovedControl(scale=1.5, rows="both"))
"""The avoidance that diffusers' pipelines can do as well: ControlNet on the moved label map, guidance throughout."""

CLOSED = {"single": 1, "batch-8": 8, "batch-32": 32}
"""Closed workloads by name: how many requests are there at once."""

MIXED_STEPS = (8, 50)
MIXED_GUIDANCE = (1.0, 2.5, 5.0, 7.5)
MIXED_RETRIES = 2


class Arrival(NamedTuple):
    """A request and the second at which it comes."""

    at: float
    request: GenerationRequest


def closed(size: int, steps: int, round: int = 0) -> list[GenerationRequest]:
    """Requests that differ in prompt and seed alone; no two rounds share a prompt's text and seed."""
    stage = Stage(steps=steps)
    accept = SimilarityPolicy(limits={}, retries=0)
    return [
        GenerationRequest(
            prompt=caption, seed=1000 * round + i, draft=stage, final=stage, avoidance=SAME_WORK, similarity=accept
        )
        for i, caption in enumerate(captions(size, (1, round)))
    ]


def mixed(
    count: int, similarity: SimilarityPolicy, steps: tuple[int, int] = MIXED_STEPS, seed: int = 0
) -> list[GenerationRequest]:
    """Requests with their own step counts (uniform in `steps`, draft and final apart) and guidance scales."""
    rng = np.random.default_rng((2, seed))
    low, high = steps

    def stage() -> Stage:
        return Stage(steps=int(rng.integers(low, high + 1)), guidance_scale=float(rng.choice(MIXED_GUIDANCE)))

    return [
        GenerationRequest(prompt=caption, seed=i, draft=stage(), final=stage(), similarity=similarity)
        for i, caption in enumerate(captions(count, (3, seed)))
    ]


def poisson(requests: Sequence[GenerationRequest], rate: float, seed: int = 0) -> list[Arrival]:
    """Let `requests` arrive one by one, `rate` of them a second on average and independently of each other."""
    times = np.random.default_rng((4, seed)).exponential(1 / rate, len(requests)).cumsum()
    return [Arrival(float(at), request) for at, request in zip(times, requests, strict=True)]


def captions(count: int, seed: tuple[int, ...]) -> list[str]:
    """Captions of scenes that the embedded model can draw."""
    rng = np.random.default_rng(seed)
    return [random_scene(rng).caption for _ in range(count)]

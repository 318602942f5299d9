"""Twig's side of the race, and diffusers' two pipelines: a contender in a process of its own, as `theirs.py` is.

python -m twig.benchmarks.peers.ours '{"runtime": "openvino", "job": "plain", "folder": "model", "cache": "cache"}'
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engine.api.mechanisms import Avoidance
from ...engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from ...engine.api.settings import Stage
from ...engine.engine import Engine
from ..workloads import SAME_WORK
from .theirs import Asked, Drawer, answer

PLAIN, TWO_STEP = "plain", "two-step"
JOBS: dict[str, dict[str, Any]] = {
    PLAIN: {"avoidance": Avoidance.off(), "gate": Gate(shut=True)},
    TWO_STEP: {"avoidance": SAME_WORK},
}
"""What requests ask for: a picture as the plain model draws it; or a draft, and a final under ControlNet on the draft's
moved map."""


def requests(asked: Asked, job: str) -> list[GenerationRequest]:
    """A request for each seed, judged by nothing."""
    stage, accept = Stage(steps=asked.steps, guidance_scale=asked.guidance), SimilarityPolicy(limits={}, retries=0)
    return [
        GenerationRequest(prompt=asked.prompt, seed=seed, draft=stage, final=stage, similarity=accept, **JOBS[job])
        for seed in asked.seeds
    ]


def engine(backend: str, folder: str | None, cache: str, job: str) -> Drawer:
    """The engine on a backend. folder: None for the embedded model."""
    os.environ["TWIG_ARTIFACTS"] = str(Path(cache) / "twig")
    made = Engine.from_pretrained(folder, backend=backend)

    def draw(asked: Asked) -> np.ndarray:
        results = made.generate(requests(asked, job))
        if failed := [result.error for result in results if result.image is None]:
            raise RuntimeError(f"{len(failed)} of {len(results)} requests failed, the first with: {failed[0]}")
        return np.stack([np.asarray(result.image) for result in results])

    return draw


def two_pipelines() -> Drawer:
    """diffusers' two pipelines, one after the other, on the embedded model."""
    from ...engine.models.checkpoint import load  # here, for what they import is no part of Twig's first picture
    from ..contenders import DiffusersPipelines

    pipelines: Callable[[Sequence[GenerationRequest]], list[np.ndarray]] = DiffusersPipelines(load(None))
    return lambda asked: np.stack(pipelines(requests(asked, TWO_STEP)))


def drawer(runtime: str, job: str, folder: str | None, cache: str) -> Drawer:
    """A contender of a job."""
    torch.set_num_threads(1)
    return two_pipelines() if runtime == "diffusers" else engine(runtime, folder, cache, job)


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    answer(lambda: drawer(chosen["runtime"], chosen["job"], chosen["folder"], chosen["cache"]))

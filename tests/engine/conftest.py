"""Results made by hand, for tests of what is written about them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.choices import Precision
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Attempt, Explanation, GenerationResult, Score, Verdict
from twig.engine.records.model_record import ModelRecord

ResultMaker = Callable[..., GenerationResult]
TOKENS = ("<|startoftext|>", "a</w>", "star</w>", "<|endoftext|>", "<|endoftext|>", "<|endoftext|>")
STEPS = 5


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Noise of `size` (width, height)."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture
def explanation() -> Explanation:
    """Attention over five steps, of which the first ran no guided row; the rule halves what pads receive."""
    neutral = np.full((STEPS, len(TOKENS)), 0.1)
    neutral[0] = np.nan
    ruled = neutral * np.array([1, 1, 1, 1, 0.5, 0.5])
    steps = np.arange(STEPS, dtype=float)
    return Explanation(
        TOKENS,
        ruled,
        neutral,
        neutral,
        neutral,
        guidance=steps,
        control=steps,
        noise=steps * 0,
        negative=steps,
        repulsion=steps,
        rows=steps,
    )


@pytest.fixture
def make_result() -> ResultMaker:
    """Return a function that makes an accepted result, with changes."""

    def make(prompt: str = "a red star", **changes: Any) -> GenerationResult:
        mask = np.zeros((16, 16), dtype=bool)
        mask[4:8, 4:12] = True
        scores = {"ssim": Score(0.25, 0.5, True), "hausdorff": Score(float("inf"), None, True)}
        values: dict[str, Any] = {
            "request": GenerationRequest(prompt=prompt, seed=7),
            "index": 0,
            "verdict": Verdict.ACCEPTED,
            "image": picture(1),
            "draft": picture(2),
            "mask": mask,
            "label_map": mask.astype(np.uint16),
            "control_map": mask[:, ::-1].astype(np.uint16),
            "attempts": (Attempt(11, Avoidance(), scores, rows=36, steps=20),),
            "calibration": "test-1",
            "timings": {"drafting": 0.5},
            "draft_rows": 40,
        }
        return GenerationResult(**values | changes)

    return make


@pytest.fixture
def model() -> ModelRecord:
    """Return the record of a model that is nowhere."""
    return ModelRecord(hashes={"unet": "00" * 32, "vae": "11" * 32}, device="cpu", dtype=Precision.FLOAT32)

"""Requests of a few steps for the tiny models, engines on the same components, and pictures compared."""

import numpy as np

from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine

NEVER = SimilarityPolicy(limits={"ssim": -1.0}, retries=1)
ALWAYS = SimilarityPolicy(limits={"ssim": 1.0}, retries=1)


class Padded(Engine):
    """An engine whose every batch is padded to one size, so that rounding cannot differ between companies."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.arenas.buckets = (self.limits.rows,)


def fresh(engine, **options):
    options.setdefault("limits", engine.limits)
    return Engine(engine.components, **options)


def request(prompt="a red star", steps=3, **changes):
    changes.setdefault("draft", Stage(steps=2))
    changes.setdefault("final", Stage(steps=steps))
    changes.setdefault("similarity", ALWAYS)
    return GenerationRequest(prompt=prompt, **changes)


def pixels(result):
    return np.asarray(result.image).astype(int)


def same(a, b, tolerance=0):
    return np.abs(pixels(a) - pixels(b)).max() <= tolerance

"""AMG, CVPR 2024: guidance away from the training picture that a run comes near, and from its caption."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....engine.engine import Engine
from ....engine.judging.registry import encode
from ....engine.models.checkpoint import Components
from ....engine.models.networks import EncodedText
from ....engine.stages.encoding import Encoding
from ..data import sources
from ..measures import to_tensor
from .steering import Region, Taken, Watching

WIDTH = 3.0
"""Standard deviations above what clean runs reach, from which on a step counts as memorised."""


class AmgEngine(Engine):
    """Anti-memorisation guidance (Chen et al., CVPR 2024, arXiv 2404.00922), at `strength` in each of its terms.

    An oracle: it is given the training pictures that the pool repeats, which no user has. At each step the predicted x0
    is compared with them by cosine similarity of latents; where the nearest, of similarity r and caption y, is nearer
    than `WIDTH` standard deviations beyond clean runs, the prediction changes, s being the guidance scale, by

        - s1 (eps_c - eps_u)             s1 = clip(strength r, 0, s - 1)            despecification
        - s2 (eps(y) - eps_u)            s2 = clip(strength r, 0, s - s1 - 1)       caption deduplication
        + strength sigma dr/dx0          times the latent's elements                dissimilarity

    for one row more at each such step, that of y where s2 is not 0. The three terms and their clipping are the paper's.
    Ours: similarity in latents rather than of a copy detector's features, the neighbours (repeated pictures alone, not
    the whole pool), a gradient in x0 rather than through the network, limits from
    `runs` clean runs rather than a parabola, and one strength for all three.
    """

    def __init__(self, *arguments: Any, strength: float, runs: int = 64, **options: Any) -> None:
        super().__init__(*arguments, **options)
        parts = self.arenas, self.stages.denoising.decoder
        self.stages.denoising = steered = Amg(
            *parts, pool=Pool(self.components, self.stages.encoding), strength=strength
        )
        steered.learn(self, int(runs))


class Pool:
    """The training pool's repeated pictures: their latents and captions."""

    def __init__(self, components: Components, encoding: Encoding) -> None:
        self.components = components
        self.encoding = encoding

    @cached_property
    def directions(self) -> Tensor:
        """Their latents (K, C h w), each centred and of length 1."""
        pixels = to_tensor(source.pixels for source in sources())
        latents = torch.cat([encode(self.components, each[None]) for each in pixels])
        return _direction(latents.to(self.encoding.networks.device))

    @cached_property
    def texts(self) -> list[EncodedText]:
        """What their captions bring to the networks."""
        ids = self.encoding.tokenize([source.caption for source in sources()])
        networks = self.encoding.networks
        return networks.denoiser.encode(self.components.text_encoder(ids.to(networks.device))[0])


class Amg(Watching):
    """Steers steps that come too near to a picture of the pool."""

    def __init__(self, *parts: Any, pool: Pool, strength: float) -> None:
        super().__init__(*parts)
        self.pool = pool
        self.strength = strength

    def number(self, taken: Taken) -> float:
        """Similarity of the predicted x0 to the nearest picture."""
        return self._nearest(taken)[0]

    def _nearest(self, taken: Taken) -> tuple[float, int]:
        """Similarity and position of the nearest picture."""
        similarity, position = (self.pool.directions @ _direction(self.clean(taken)[None])[0]).max(0)
        return float(similarity), int(position)

    def steer_within(self, taken: Sequence[Taken], region: Region) -> None:
        """Guide the steps that are nearer than clean runs come."""
        found = [(each, *self._nearest(each)) for each in taken]
        near = [each for each in found if each[1] > region.upper(each[0].number, WIDTH)]
        terms = [self._scales(each.stage.guidance_scale, similarity) for each, similarity, _ in near]
        asked = [each for each, (_, duplicate) in zip(near, terms, strict=True) if duplicate]
        texts = [self.pool.texts[position] for _, _, position in asked]
        drawn = iter(self.beside.predict([each for each, _, _ in asked], texts) if asked else ())
        for (each, similarity, position), (specific, duplicate) in zip(near, terms, strict=True):
            change = self._dissimilarity(each, similarity, position) - specific * self.contrast(each)
            if duplicate:
                change -= duplicate * (next(drawn) - self.unconditional(each))
            self.push(each, change)

    def _scales(self, guidance: float, similarity: float) -> tuple[float, float]:
        """Factors of despecification and of caption deduplication."""
        wanted = max(self.strength * similarity, 0.0)
        specific = min(wanted, guidance - 1)
        return specific, min(wanted, guidance - specific - 1)

    def _dissimilarity(self, taken: Taken, similarity: float, position: int) -> Tensor:
        """Gradient (C, h, w) of the similarity, times its number of elements, the noise level and the strength."""
        centred = _centred(self.clean(taken)[None])[0]
        toward = (self.pool.directions[position] - similarity * F.normalize(centred, dim=0)) / centred.norm()
        per_element = (len(toward) * toward).view_as(taken.latent)
        return self.strength * self.noise_level(taken) * per_element


def _centred(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) less each channel's mean, flat."""
    return (latents - latents.mean((-2, -1), keepdim=True)).flatten(1)


def _direction(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w), centred, flat and of length 1."""
    return F.normalize(_centred(latents))

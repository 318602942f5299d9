"""Ren et al., ECCV 2024: padding masked out of cross-attention, the start token's logits raised."""

from typing import Any

import torch

from ....engine.batching.arenas import Arenas
from ....engine.batching.job import Job
from ....engine.engine import Engine
from ....engine.models.checkpoint import Components
from ....engine.stages.starting import Starting
from ....kernels import TokenRow

START = 0
"""Position of the start token."""


class RenEngine(Engine):
    """Multiplies the start token's attention logits by `start_scale` in every final (Ren et al., ECCV 2024).

    The requests' own masked attention takes the padding away.
    """

    def __init__(self, *arguments: Any, start_scale: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stages.starting = RenStarting(self.components, self.arenas, start_scale)


class RenStarting(Starting):
    """Starts finals with another scale for the start token."""

    def __init__(self, components: Components, arenas: Arenas, start_scale: float) -> None:
        super().__init__(components, arenas)
        self.start_scale = start_scale

    @torch.inference_mode()
    def start_final(self, job: Job) -> None:
        """Start a final as usual, then scale its start token."""
        super().start_final(job)
        self.arenas.loop(job.shape).arena.tokens[job.slot, TokenRow.C, START] = self.start_scale

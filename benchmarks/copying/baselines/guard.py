"""GUARD, arXiv 2603.00133: tokens that draw too much attention are attenuated, the plain prediction repelled."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....engine.avoidance.conditioning import spikes
from ....engine.batching.arenas import Arenas
from ....engine.batching.job import Job
from ....engine.engine import Engine
from ....engine.models.checkpoint import Components
from ....engine.models.networks import MassRecord
from ....engine.stages.starting import Starting
from ....kernels import TokenRow
from .steering import Beside, Steered, Taken, conditional_text

ATTENUATION = -3.0
"""Added to the logits of spiking tokens: a twentieth of their attention is left."""

SPIKING = 1.0
"""Standard deviations above the mean token from which on a token's attention counts as a spike."""


class GuardEngine(Engine):
    """Guides to a prediction with attenuated attention, and away from the plain one by `repulsion`.

    With eps_u, eps_c and eps_a the predictions without prompt, with it, and with it under attenuated attention, and s
    the guidance scale, a final follows

        eps = eps_u + s (eps_a - eps_u) + repulsion (eps_a - eps_c)

    for a row more a step. Attenuated are the tokens, start token left out, that draw attention `SPIKING` standard
    deviations above the mean in a plain prediction of the final's first step, which costs a row. The attractive and the
    repulsive term and the statistical choice of positions for each prompt are the paper's; that positions are chosen
    once, the attenuation as a bias of logits (a factor raises what is negative), and these values, are ours.
    """

    def __init__(self, *arguments: Any, repulsion: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stages.starting = GuardStarting(self.components, self.arenas)
        self.stages.denoising = Guard(self.arenas, self.stages.denoising.decoder, repulsion=repulsion)


class GuardStarting(Starting):
    """Starts finals with the tokens attenuated that spike in their first step."""

    def __init__(self, components: Components, arenas: Arenas) -> None:
        super().__init__(components, arenas)
        self.beside = Beside(arenas)

    @torch.inference_mode()
    def start_final(self, job: Job) -> None:
        """Start a final as usual, then attenuate."""
        super().start_final(job)
        arena = self.arenas.loop(job.shape).arena
        masses = self._masses(Taken(job, 0, arena.latents[job.slot].clone()))
        words = torch.arange(1, len(masses))
        spiking = words[spikes(masses[words], SPIKING)]
        arena.tokens[job.slot, TokenRow.B, spiking.to(arena.tokens.device)] = ATTENUATION

    def _masses(self, first: Taken) -> Tensor:
        """Attention (T,) that each token draws."""
        record = MassRecord()
        self.beside.predict([first], [conditional_text(first.job)], record)
        assert isinstance(record.neutral, Tensor)
        return record.neutral[0].sum(0).cpu()


class Guard(Steered):
    """Repels each step from the plain prediction."""

    def __init__(self, *parts: Any, repulsion: float) -> None:
        super().__init__(*parts)
        self.repulsion = repulsion

    def steer(self, taken: Sequence[Taken]) -> None:
        """Add the repulsive term."""
        plain = self.beside.predict(taken, [conditional_text(each.job) for each in taken])
        for each, prediction in zip(taken, plain, strict=True):
            attenuated = self.unconditional(each) + self.contrast(each)
            self.push(each, self.repulsion * (attenuated - prediction))

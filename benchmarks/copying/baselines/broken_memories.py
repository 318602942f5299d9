"""Broken Memories, arXiv 2605.22050: updates of the latent stay within what runs that recite nothing make of them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ....engine.engine import Engine
from .steering import Region, Taken, Watching

WIDTH = 2.0
"""Standard deviations about the mean that the region of a step reaches."""


class BrokenMemoriesEngine(Engine):
    """Shortens each update of a final's latent that leaves an empirical stability region.

    The region of a step is the norm |x_(t-1) - x_t| that `runs` runs of captions that name no source have there, with
    the same solver and steps: up to `WIDTH` standard deviations above its mean. Those runs are drawn once for an engine
    and, like any calibration, not billed; no row more is spent. An update of norm u beyond the limit l keeps its
    direction and gets the norm u (l / u)^power: power 1 ends on the region's edge, a higher one the farther inside the
    farther outside the update was. The paper tells of regions on update norms, and of a mitigation at the steps that
    leave them which leaves prompt and guidance as they are; how it acts there could not be read, and this form of it,
    as that the region is a normal distribution's, is ours.
    """

    def __init__(self, *arguments: Any, power: float, runs: int = 64, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stages.denoising = steered = BrokenMemories(self.arenas, self.stages.denoising.decoder, power=power)
        steered.learn(self, int(runs))


class BrokenMemories(Watching):
    """Shortens updates that leave the region."""

    def __init__(self, *parts: Any, power: float) -> None:
        super().__init__(*parts)
        self.power = power

    def number(self, taken: Taken) -> float:
        """Root mean square of the step's update."""
        return _size(self.update(taken))

    def steer_within(self, taken: Sequence[Taken], region: Region) -> None:
        """Shorten each update that is longer than the region allows."""
        for each in taken:
            size, most = self.number(each), region.upper(each.number, WIDTH)
            if size > most:
                latents = self.beside.arena(each.job).latents
                latents[each.job.slot] = each.latent + self.update(each) * (most / size) ** self.power


def _size(change: Tensor) -> float:
    return float(change.square().mean().sqrt())

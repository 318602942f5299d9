"""Broken Memories, arXiv 2605.22050: updates of the latent stay within what runs that recite nothing make of them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ....engine.engine import Engine
from .steering import Region, Taken, Watching


class BrokenMemoriesEngine(Engine):
    """Keeps the norm of each update of a final's latent within an empirical stability region.

    The region of a step is the mean and `width` standard deviations of the norm |x_(t-1) - x_t| in `runs` runs of
    captions that name no source, with the same solver and steps; they are drawn once for an engine and, like any
    calibration, not billed. No row more is spent. The paper tells of regions on update norms and of a mitigation that
    acts at the steps that leave them, prompt and guidance as they are; that such an update is shortened to the region's
    edge, its direction kept, and that the region is that of a normal distribution, is ours.
    """

    def __init__(self, *arguments: Any, width: float, runs: int = 128, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stages.denoising = steered = BrokenMemories(self.arenas, self.stages.denoising.decoder, width=width)
        steered.learn(self, int(runs))


class BrokenMemories(Watching):
    """Shortens updates that leave the region."""

    def __init__(self, *parts: Any, width: float) -> None:
        super().__init__(*parts)
        self.width = width

    def number(self, taken: Taken) -> float:
        """Root mean square of the step's update."""
        return _size(self.update(taken))

    def steer_within(self, taken: Sequence[Taken], region: Region) -> None:
        """Shorten each update that is longer than the region allows."""
        for each in taken:
            size, most = self.number(each), max(region.upper(each.number, self.width), 0.0)
            if size > most:
                latents = self.beside.arena(each.job).latents
                latents[each.job.slot] = each.latent + self.update(each) * (most / size)


def _size(change: Tensor) -> float:
    return float(change.square().mean().sqrt())

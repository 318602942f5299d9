"""What an engine holds for a moment only, read while it runs."""

from collections.abc import Sequence

from torch import Tensor

from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import GenerationResult
from twig.engine.engine import Engine


def final_latents(engine: Engine, batch: Sequence[GenerationRequest]) -> tuple[list[Tensor], list[GenerationResult]]:
    """Draw `batch`; final latents, read when a job is about to be judged, and results."""
    found, judge = {}, engine.stages.judging.judge

    def spy(jobs):
        found.update({job.request_id: engine.arenas.latent(job).clone() for job in jobs})
        judge(jobs)

    engine.stages.judging.judge = spy
    results = engine.generate(batch)
    engine.stages.judging.judge = judge
    return [found[id] for id in sorted(found)], results

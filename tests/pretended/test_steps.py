"""Steps of the engine on a device: one copy and no wait each, beside what is decoded and judged meanwhile."""

import pytest
import torch
from torch import nn

from pretend import Kind
from twig.engine.api.event import State
from twig.engine.api.mechanisms import Avoidance, InitialNoise, Repulsion
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.batching.denoising import DenoisingLoop
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.judging.registry import Registry, Work

POLICY = Avoidance(initial_noise=InitialNoise(sharpness_steps=1), repulsion=Repulsion(radius=4.0))


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    """Loaded before there is a device."""
    return Engine.from_pretrained(tiny_checkpoint).components


@pytest.fixture(scope="module")
def engine(components, divided_arenas, device):
    parts = components.unet, components.controlnet, components.vae, components.text_encoder, components.segmenter.model
    for network in parts:
        nn.Module.to(network, "cuda")
    works = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1))
    registry = Registry(components.hashes["vae"], (Work("0", "0", "", ""),), torch.eye(1, 320), works)
    return Engine(components, device="cuda", limits=Limits(slots=2, rows=4), registry=registry)


def request(draft, **changes):
    similarity = SimilarityPolicy(limits={}, retries=0)
    return GenerationRequest(
        prompt="a star", draft=Stage(steps=draft), final=Stage(steps=1), similarity=similarity, **changes
    )


def test_a_step_takes_one_copy_and_no_wait_and_judging_waits_for_no_step_of_others(engine, device, monkeypatch):
    """A short request is judged while a long one goes on, which has every mechanism that acts after a step."""
    streams, stages, last, behind, kinds = engine.streams, engine.stages, {}, [], set()
    denoise, judge = stages.denoising.denoise, stages.judging.judge

    def stepped(jobs, apart):
        with device.counted() as counts:
            bucket = denoise(jobs, apart)
        # A step waits for one that is two before it, and for nothing else.
        assert (counts.kinds[Kind.UPLOAD], counts.copies, counts.waits) == (1, 1, 0)
        assert counts.kinds[Kind.WAIT] <= 1
        last.update((job.id, streams._stepping.ticks) for job in jobs)
        kinds.update((job.state, bool(job.trajectory.probes)) for job in jobs)
        return bucket

    def judged(jobs):
        judge(jobs)
        knows = streams._between.behind[streams._stepping]
        assert all(knows >= last[job.id] for job in jobs)
        behind.append(streams._stepping.ticks - knows)

    def is_known(event):
        return all(device.host_clock.get(stream, 0) >= ticks for stream, ticks in event.clock.items())

    # A slow device, which has done no more than the host has waited for.
    monkeypatch.setattr(torch.cuda.Event, "query", is_known)
    monkeypatch.setattr(stages.denoising, "denoise", stepped)
    monkeypatch.setattr(stages.judging, "judge", judged)
    plain = request(1, seed=1, avoidance=Avoidance.off())
    results = engine.generate([plain, request(6, seed=2, avoidance=POLICY)])
    assert [result.verdict for result in results] == [Verdict.ACCEPTED] * 2, [result.error for result in results]
    assert (State.FINALISING, True) in kinds
    assert max(behind) > 0, "a picture was judged while a step that it has no part in was on its way"
    stats = engine.stats()
    assert stats.rows == sum(result.rows for result in results)
    assert stats.seconds["denoise"] > 0 < engine.rows_per_second


def test_a_warm_up_keeps_free_what_the_largest_batch_that_fits_was_measured_to_need(engine, monkeypatch):
    decoder, sizes = engine._decoder, []
    decode = decoder.decode

    def tried(latents):
        sizes.append(len(latents))
        if len(latents) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return decode(latents)

    monkeypatch.setattr(decoder, "decode", tried)
    monkeypatch.setattr(DenoisingLoop, "capture", lambda loop, least=False: None)
    engine.warmup()
    assert sizes == [8, 4, 2]
    pictures = 2 * 3 * 64 * 64 * 4
    assert engine.graphs.reserve > 2 * pictures

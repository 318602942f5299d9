"""Faults in every kind of batch: the guilty request fails, its neighbours' pictures are what they would have been."""

import dataclasses
import pkgutil

import numpy as np
import pytest
import torch

from twig.engine.api.event import State
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.backends.networks import Networks
from twig.engine.batching.job import Job
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models.tensors import Network

ANY = SimilarityPolicy(limits={}, retries=0)
GUILTY = "a moon"
BATCHES = (("encoding", "encode"), ("denoising", "denoise"), ("segmenting", "segment"), ("judging", "judge"))
"""Each stage and its verb."""


class OutOfMemory(torch.OutOfMemoryError):
    """As the allocator raises it."""


@pytest.fixture(scope="module")
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=8, rows=8))


def fresh(engine):
    return Engine(engine.components, limits=engine.limits)


def request(prompt, **changes):
    return GenerationRequest(prompt=prompt, draft=Stage(steps=2), final=Stage(steps=3), similarity=ANY, **changes)


CROWD = [request(GUILTY, seed=1), *(request(p, seed=2) for p in ("a red star", "a blue house", "a tree"))]


@pytest.fixture(scope="module")
def wanted(engine):
    """Return what becomes of `CROWD` without a fault, by prompt."""
    return {r.request.prompt: r for r in fresh(engine).generate(CROWD)}


def assert_only_the_guilty_failed(wanted, broken, crowd=CROWD, message=""):
    results = {r.request.prompt: r for r in broken.generate(crowd)}
    guilty = results.pop(GUILTY)
    assert guilty.verdict is Verdict.FAILED
    assert message in guilty.error
    assert_as_without_fault(wanted, broken, results)


def assert_as_without_fault(wanted, engine, results):
    for prompt, result in results.items():
        assert result.verdict is Verdict.ACCEPTED, result.error
        assert result.rows == wanted[prompt].rows
        assert len(result.attempts) == 1
        assert np.abs(np.asarray(result.image, int) - np.asarray(wanted[prompt].image, int)).max() <= 1
    assert engine.pending == 0
    assert engine.scheduler.free_slots == engine.limits.slots
    assert not engine._lifecycle._since


def broken_at(engine, stage, fault):
    """Let `fault` look at the jobs of each `stage` batch before it runs."""
    broken = fresh(engine)
    owner, verb = stage
    owner = getattr(broken.stages, owner)
    work = getattr(owner, verb)

    def checked(jobs, *apart):
        fault(jobs)
        return work(jobs, *apart)

    setattr(owner, verb, checked)
    return broken


@pytest.mark.parametrize("stage", BATCHES, ids=lambda stage: stage[1])
def test_memory_that_one_request_exhausts_fails_it_alone(engine, wanted, stage):
    def exhaust(jobs):
        if any(job.request.prompt == GUILTY for job in jobs):
            raise OutOfMemory("tried to allocate 20 GiB")

    assert_only_the_guilty_failed(wanted, broken_at(engine, stage, exhaust), message="20 GiB")


@pytest.mark.parametrize("stage", BATCHES, ids=lambda stage: stage[1])
def test_a_batch_too_large_for_memory_is_halved_and_nobody_fails(engine, wanted, stage):
    sizes = []

    def exhaust(jobs):
        sizes.append(len(jobs))
        if len(jobs) > 1:
            raise OutOfMemory("tried to allocate 20 GiB")

    broken = broken_at(engine, stage, exhaust)
    results = broken.generate(CROWD)
    assert max(sizes) > 1
    assert_as_without_fault(wanted, broken, {r.request.prompt: r for r in results})


@pytest.mark.parametrize("network", [Network.TEXT_ENCODER, Network.VAE_DECODER, Network.SEGMENTER, Network.UNET])
def test_a_batch_whose_network_fails_half_way_is_repeated(engine, wanted, network, monkeypatch):
    """Halved batches start over: nothing that the failed run left behind reaches a picture."""
    failed = []
    method = "predict" if network is Network.UNET else "__call__"
    run = getattr(Networks, method)

    def faulty(self, *arguments):
        outputs = run(self, *arguments)
        if network in (Network.UNET, arguments[0]) and len(failed) < 2:
            failed.append(network)
            raise OutOfMemory("tried to allocate 20 GiB")
        return outputs

    broken = fresh(engine)
    monkeypatch.setattr(Networks, method, faulty)
    results = broken.generate(CROWD)
    assert len(failed) == 2
    assert_as_without_fault(wanted, broken, {r.request.prompt: r for r in results})


@pytest.mark.parametrize("start", ["start_draft", "start_final"])
def test_nan_in_a_latent_fails_its_request_alone(engine, wanted, start):
    """The guilty rows come first in the batch, where a careless padding row would read them."""
    broken = fresh(engine)
    work = getattr(broken.stages.starting, start)

    def poisoned(job):
        work(job)
        if job.request.prompt == GUILTY:
            with torch.inference_mode():
                broken.arenas.loop(job.shape).arena.latents[job.slot] = torch.nan

    setattr(broken.stages.starting, start, poisoned)
    assert_only_the_guilty_failed(wanted, broken, message="NaN")


def test_nan_in_a_prompts_text_fails_its_request_alone(engine, wanted):
    broken = fresh(engine)
    encode = broken.stages.encoding.encode

    def poisoned(jobs):
        encode(jobs)
        for job in jobs:
            if job.request.prompt == GUILTY:
                texts = [dataclasses.replace(t, unet=tuple(kv * torch.nan for kv in t.unet)) for t in job.shared.texts]
                job.shared.texts = tuple(texts)

    broken.stages.encoding.encode = poisoned
    assert_only_the_guilty_failed(wanted, broken, message="NaN")


def test_a_preview_that_fails_does_not_repeat_the_step(engine, wanted):
    crowd = [r.model_copy(update={"preview": 1}) for r in CROWD]
    broken = fresh(engine)
    previews = broken.stages.denoising.previews

    def faulty(jobs):
        if any(job.request.prompt == GUILTY and job.state is State.FINALISING for job in jobs):
            raise OutOfMemory("tried to allocate 20 GiB")
        return previews(jobs)

    broken.stages.denoising.previews = faulty
    assert_only_the_guilty_failed(wanted, broken, crowd, "20 GiB")


def test_a_verdict_stands_when_another_shape_in_its_batch_fails(engine, wanted):
    crowd = [*CROWD[1:], request(GUILTY, seed=1, width=96)]
    broken = fresh(engine)
    launch = broken.judge.launch

    def faulty(finals, *others):
        if finals.shape[-1] == 96:
            raise OutOfMemory("tried to allocate 20 GiB")
        return launch(finals, *others)

    broken.judge.launch = faulty
    assert_only_the_guilty_failed(wanted, broken, crowd, "20 GiB")


# --- moves and ends ---


WITNESSED = Gate(limits={"agreement": 2.0}, witnesses=2)
"""A gate that asks two witnesses and stays shut."""


PLACES = [
    ("twig.engine.results.Results.whole", {}),
    ("twig.engine.results.draft_of", {}),
    ("twig.engine.lifecycle.draft_of", {}),
    ("twig.engine.stages.judging.Judging.explanation", {"explain": True}),
    ("twig.engine.stages.judging.Judging.ending", {}),
    ("twig.engine.stages.starting.Starting.start_draft", {}),
    ("twig.engine.stages.starting.Starting.start_final", {}),
    ("twig.engine.stages.starting.Starting.start_witness", {"gate": WITNESSED}),
    ("twig.engine.stages.starting.Starting.deliver_draft", {"gate": WITNESSED, "final": Stage(steps=2)}),
    ("twig.engine.stages.segmenting.Segmenting.wants_witnesses", {}),
    ("twig.engine.stages.segmenting.Segmenting.hear_witness", {"gate": WITNESSED}),
]
"""What is called with one job while it is moved or ended, and what a request must ask for to get there."""


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(("place", "changes"), PLACES, ids=[place.removeprefix("twig.engine.") for place, _ in PLACES])
def test_whatever_fails_on_the_way_or_at_the_end_fails_its_image_alone(engine, monkeypatch, place, changes, images):
    """The slot is free, everybody else goes on, and the engine closes."""
    crowd = [request(GUILTY, seed=1, num_images=images).model_copy(update=changes), *CROWD[1:]]
    owner, name = pkgutil.resolve_name(place.rsplit(".", 1)[0]), place.rsplit(".", 1)[1]
    right = getattr(owner, name)

    def faulty(*arguments):
        (job,) = [argument for argument in arguments if isinstance(argument, Job)]
        if job.request.prompt == GUILTY:
            raise OutOfMemory("tried to allocate 20 GiB")
        return right(*arguments)

    monkeypatch.setattr(owner, name, faulty)
    broken = fresh(engine)
    guilty, neighbours = [], []
    for result in broken.generate(crowd):
        (guilty if result.request.prompt == GUILTY else neighbours).append(result)
    # Of several images only the first is the draft; the others go their own ways.
    hit = guilty[:1] if name == "deliver_draft" else guilty
    assert all(result.verdict is Verdict.FAILED and "20 GiB" in result.error for result in hit)
    assert all(result.image is None for result in hit)
    assert all(result.verdict is Verdict.ACCEPTED for result in (*neighbours, *guilty[len(hit) :]))
    assert [result.index for result in guilty] == list(range(images))
    assert broken.close() == []
    assert broken.pending == 0
    assert broken.scheduler.free_slots == broken.limits.slots
    assert not broken.arenas._claims


def test_pictures_that_cannot_be_shown_fail_their_requests_and_no_more(engine, monkeypatch):
    """An autoencoder of one channel passes every network before it, where a mask is brought along."""
    broken = fresh(engine)
    decode = broken.stages.judging.decoder.decode
    monkeypatch.setattr(broken.stages.judging.decoder, "decode", lambda latents: decode(latents)[:, :1])
    monkeypatch.setattr(broken.stages.judging.decoder, "labels", lambda pixels: None)
    for _ in range(2):
        (result,) = broken.generate(request("a star", mask=np.ones((64, 64), bool), avoidance=Avoidance.off()))
        assert result.verdict is Verdict.FAILED
    assert broken.close() == []
    assert broken.scheduler.free_slots == broken.limits.slots

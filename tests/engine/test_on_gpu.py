"""What only a GPU can show of steps and streams: that the host is not waited for, and what is left when one fails."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from twig.engine.api.mechanisms import Avoidance, InitialNoise, MaskedAttention
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.backends.options import TorchOptions
from twig.engine.batching.graphs import GraphPool
from twig.engine.batching.scheduler import Limits
from twig.engine.batching.streams import Streams
from twig.engine.engine import Engine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

_CYCLES = 100_000_000
"""About a twentieth of a second."""


@pytest.fixture
def cuda():
    return torch.device("cuda", torch.cuda.device_count() - 1)


def request(seed, prompt="a star", **changes):
    similarity = SimilarityPolicy(limits={}, retries=0)
    return GenerationRequest(
        prompt=prompt, seed=seed, draft=Stage(steps=4), final=Stage(steps=5), similarity=similarity, **changes
    )


CROWD = [
    request(1),
    request(2, avoidance=Avoidance.off(), preview=2),
    request(3, avoidance=Avoidance(initial_noise=InitialNoise(sharpness_steps=1)), explain=True),
    request(4, "a (red:1.3) star BREAK a moon"),
    request(5, "a red star on the moon, " * 25, avoidance=Avoidance(masked_attention=MaskedAttention(bias=-4))),
]
"""Some of several chunks, which share calls with the others."""


def test_the_host_asks_for_two_steps_at_once_and_hears_how_long_they_took(cuda):
    streams, asked = Streams(cuda), []
    with streams.between():
        torch.cuda._sleep(1)
        streams.settle()
        for _ in range(4):
            began = time.perf_counter()
            with streams.step():
                torch.cuda._sleep(_CYCLES)
            asked.append(time.perf_counter() - began)
        streams.settle()
    seconds = streams.finished()
    assert len(seconds) == 4
    assert max(asked[:2]) < min(seconds) / 2
    assert min(asked[2:]) > min(seconds) / 2
    assert max(seconds) < 2 * min(seconds)


def test_what_comes_between_steps_does_not_wait_for_those_that_it_has_no_part_in(cuda):
    streams = Streams(cuda)
    with streams.between():
        done = torch.zeros(1, device=cuda)
        with streams.step() as mark:
            done += 1
        with streams.step():
            torch.cuda._sleep(4 * _CYCLES)
        began = time.perf_counter()
        streams.after(mark)
        assert done.item() == 1
        judged = time.perf_counter() - began
        streams.settle()
    assert judged < streams.finished()[1] / 2


def test_memory_that_ends_in_a_capture_costs_that_graph_alone(cuda):
    pool, source, target = GraphPool(cuda), torch.ones(4, device=cuda), torch.zeros(4, device=cuda)

    def double():
        torch.mul(source, 2, out=target)

    def exhaust():
        double()
        if torch.cuda.is_current_stream_capturing():
            torch.empty(2**50, dtype=torch.uint8, device=cuda)

    with torch.cuda.device(cuda):
        kept = [pool.capture(key, body) for key, body in enumerate((double, exhaust, double))]
        assert kept == [True, False, True]
        for key in (0, 2):
            source.fill_(3 + key)
            pool.run(key, double)
            assert target.tolist() == [2.0 * (3 + key)] * 4


def test_pictures_are_the_processors_with_graphs_and_without(tiny_checkpoint, cuda):
    limits = Limits(slots=4, rows=8)
    expected = Engine.from_pretrained(tiny_checkpoint, limits=limits).generate(CROWD)
    exact = TorchOptions(tf32=False)
    engine = Engine.from_pretrained(tiny_checkpoint, device=cuda, limits=limits, torch_options=exact)
    eager = engine.generate(CROWD)
    assert engine.warmup(long_prompts=True)["dropped"] == []
    graphed = engine.generate(CROWD)
    stats = engine.stats()
    assert stats.graphs.hits > 0
    assert stats.rows == 2 * sum(result.rows for result in expected)
    for results in (eager, graphed):
        for one, other in zip(results, expected, strict=True):
            assert one.verdict is Verdict.ACCEPTED, one.error
            difference = np.abs(np.asarray(one.image, int) - np.asarray(other.image, int))
            assert difference.mean() < 1
            assert difference.max() <= 8


FAILING = """
import sys, torch
from twig.engine.api.errors import EngineClosedError
from twig.engine.api.request import GenerationRequest
from twig.engine.engine import Engine

engine = Engine.from_pretrained(sys.argv[1], device="cuda")
denoise = engine.stages.denoising.denoise

def failing(jobs, apart):
    torch.zeros(1, device="cuda")[torch.full((1,), 7, device="cuda")] += 1
    return denoise(jobs, apart)

engine.stages.denoising.denoise = failing
results = engine.generate([GenerationRequest(prompt="a star", seed=seed) for seed in range(3)])
assert {result.verdict.value for result in results} == {"failed"}
assert all("device-side assert" in result.error for result in results), results[0].error
assert not engine.alive and not engine.pending
try:
    engine.submit(GenerationRequest(prompt="a star"))
except EngineClosedError as error:
    print("closed:", error)
"""


def test_a_device_that_failed_ends_every_request_and_the_engine(tiny_checkpoint):
    done = subprocess.run([sys.executable, "-c", FAILING, tiny_checkpoint], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("closed: the device failed"), done.stderr[-2000:]

"""Graphs of the engine: captured on one stream, dropped one at a time where memory ends, let go with their memory."""

import logging

import pytest
import torch

from twig.engine.batching.graphs import GraphPool

CUDA = torch.device("cuda", 0)


@pytest.fixture
def captures(device, monkeypatch):
    """Pool and stream of each capture."""
    made, graph = [], torch.cuda.graph

    def seen(which, pool=None, stream=None, **options):
        made.append((pool, stream))
        return graph(which, pool=pool, stream=stream, **options)

    monkeypatch.setattr(torch.cuda, "graph", seen)
    with torch.inference_mode():
        yield made


class Doubling:
    """A body over static buffers; `fails` in so many of its runs, of which two warm up and the third is captured."""

    def __init__(self, fails=(), error=None):
        self.source, self.target = torch.zeros(2, device=CUDA), torch.zeros(2, device=CUDA)
        self.fails, self.runs = fails, 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def __call__(self):
        self.runs += 1
        if self.runs in self.fails:
            raise self.error
        self.target.copy_(self.source * 2)

    def of(self, value):
        self.source.fill_(value)
        return self.target.tolist()


@pytest.mark.parametrize("run", [1, 3])
def test_a_graph_that_memory_is_too_short_for_is_dropped_alone_and_runs_eagerly(captures, caplog, run):
    pool = GraphPool(CUDA)
    bodies = {"small": Doubling(), "large": Doubling(fails=[run]), "other": Doubling(fails=[run]), "least": Doubling()}
    with caplog.at_level(logging.WARNING):
        kept = {key: pool.capture(key, body) for key, body in bodies.items()}
    assert kept == {"small": True, "large": False, "other": False, "least": True}
    assert len(caplog.records) == 1, "it is said once"
    assert (pool.stats.captured, pool.stats.dropped) == (2, ["large", "other"])
    assert torch.cuda.current_stream() is torch.cuda.default_stream()
    for key, body in bodies.items():
        body.source.fill_(3)
        pool.run(key, body)
        assert body.target.tolist() == [6, 6]
    assert (pool.stats.hits, pool.stats.misses) == (2, 2)


def test_a_device_that_fails_in_a_capture_is_not_taken_for_a_full_one(captures):
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        GraphPool(CUDA).capture("large", Doubling(fails=[2], error=error))


def test_all_graphs_share_a_stream_and_memory_while_there_is_one(captures):
    pool = GraphPool(CUDA)
    for key in ("a", "b"):
        pool.capture(key, Doubling())
    for key in ("a", "b"):
        pool.forget(key)
    pool.capture("c", Doubling())
    pools, streams = zip(*captures, strict=True)
    assert len(set(streams)) == 1
    assert pools[1] is not None
    assert pools[2] is None, "memory that went with the last graph cannot be shared"


def test_what_would_be_needed_beside_the_graphs_stays_free(captures, monkeypatch):
    pool = GraphPool(CUDA, reserve=2**30)
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30 - 1 if emptied[1:] else 2**30, 2**40))
    assert not pool.capture("large", Doubling())
    assert len(emptied) == 2, "what the allocator keeps is given back before free memory is asked for"
    assert pool.stats.dropped == ["large"]


def test_need_is_the_most_that_was_taken_at_a_time(captures):
    kept = torch.zeros(1000, device=CUDA)
    pool = GraphPool(CUDA)
    assert pool.need(lambda: torch.zeros(500, device=CUDA) + 1) == 4000
    assert pool.need(lambda: kept.add_(1)) == 0
    assert GraphPool(torch.device("cpu")).need(lambda: None) == 0

"""What an engine says it did: units, who is counted, JSON, and the text that Prometheus scrapes."""

import sys

import pytest

from twig.engine.api.errors import TwigError
from twig.engine.api.result import Verdict
from twig.engine.batching.graphs import GraphStats
from twig.engine.exposition import Collector
from twig.engine.stats import Stats, StatsRecorder


def clocked():
    """A recorder whose clock stands at ten seconds after its first batch began."""
    times = iter((100.0, 110.0, 110.0, 110.0))
    return StatsRecorder(lambda: next(times))


def snapshot(recorder, **changes):
    values = {
        "waiting": 3,
        "resident": 2,
        "graphs": GraphStats(captured=4, hits=10, misses=1, seconds=1.5, dropped=["unet"]),
        "memory": {"arenas": 4096, "programs": 8192, "allocated": 2**33},
        "backends": {"unet": {"backend": "torch", "reason": 'named "torch"', "seconds": {"torch": 0.25}}},
    }
    return recorder.snapshot(**values | changes)


@pytest.fixture
def stats():
    recorder = clocked()
    recorder.step(6, 8, 2, 0.375)
    recorder.batch("denoise", 0.125)
    for seconds in (1.0, 2.0, 3.0):
        recorder.finished(Verdict.ACCEPTED, seconds)
    recorder.finished(Verdict.REFUSED, 4.0)
    for verdict in (Verdict.CANCELLED, Verdict.EXPIRED, Verdict.FAILED):
        recorder.finished(verdict, 1000.0)
    return snapshot(recorder)


def test_latency_is_that_of_judged_images_alone(stats):
    assert stats.latency == pytest.approx({"p50": 2.5, "p90": 3.7, "p95": 3.85, "p99": 3.97})
    assert (stats.judged, stats.latency_sum) == (4, 10.0)
    assert sum(stats.verdicts.values()) == 7


def test_a_snapshot_stays_as_it_was():
    recorder, graphs = clocked(), GraphStats(hits=1)
    before = snapshot(recorder, graphs=graphs)
    graphs.hits += 1
    graphs.dropped.append("late")
    assert before.graphs == GraphStats(hits=1)


def test_a_snapshot_travels(stats):
    again = Stats.from_json(stats.to_json())
    assert again == stats
    assert hash(again) == hash(stats)
    assert again.as_dict() == stats.as_dict()
    for mode in ("validation", "serialization"):
        assert Stats.model_json_schema(mode=mode)["title"] == "Stats"


def samples(text):
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(text))
    return families, {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }


def test_prometheus_reads_names_units_and_types(stats):
    families, found = samples(stats.prometheus())
    assert found["twig_images_total", ("verdict", "accepted")] == 3
    assert found["twig_images_total", ("verdict", "expired")] == 1
    assert found["twig_images_total", ("verdict", "review")] == 0
    assert found["twig_unet_rows_total",] == 6
    assert found["twig_unet_padded_rows_total",] == 2
    assert found["twig_request_latency_seconds", ("quantile", "0.5")] == 2.5
    assert found["twig_request_latency_seconds", ("quantile", "0.99")] == pytest.approx(3.97)
    assert found["twig_request_latency_seconds_count",] == 4
    assert found["twig_request_latency_seconds_sum",] == 10
    assert found["twig_arena_bytes",] == 4096
    assert found["twig_program_bytes",] == 8192
    assert found["twig_device_memory_bytes", ("state", "allocated")] == 2**33
    assert found["twig_batch_seconds_total", ("kind", "denoise")] == 0.5
    assert found["twig_backend_info", ("backend", "torch"), ("network", "unet")] == 1
    assert {family.type for family in families} == {"counter", "gauge", "summary"}
    assert all(family.name.startswith("twig_") and family.documentation for family in families)


def test_before_the_first_verdict_there_are_no_quantiles():
    _, found = samples(snapshot(clocked()).prometheus())
    assert found["twig_request_latency_seconds_count",] == 0
    assert not [name for name in found if name[0] == "twig_request_latency_seconds"]
    assert found["twig_unet_rows_total",] == found["twig_images_total", ("verdict", "accepted")] == 0


def test_a_registry_of_ones_own_asks_anew(stats):
    client = pytest.importorskip("prometheus_client")
    registry, asked = client.CollectorRegistry(), []
    registry.register(Collector(lambda: asked.append(1) or stats))
    before = len(asked)
    assert registry.get_sample_value("twig_waiting_images") == 3
    assert b"twig_resident_images 2.0" in client.generate_latest(registry)
    assert len(asked) == before + 2


def test_without_the_extra_the_remedy_is_named(stats, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(TwigError, match=r"twig-engine\[serve\]"):
        stats.prometheus()

"""What an engine did, in the text format that Prometheus scrapes.

The format's rules (names, help, escapes) are prometheus-client's, of the extra `serve`; which names there are is said
here. Rates are not among them: Prometheus makes them of the counters, as `rate(twig_unet_rows_total[1m])`.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .api.errors import TwigError
from .api.result import Verdict

if TYPE_CHECKING:
    from .stats import Stats


class Collector:
    """Gives the families of a fresh snapshot whenever a registry of prometheus-client asks: `registry.register(...)`.

    snapshot: an engine's `stats`.
    """

    def __init__(self, snapshot: Callable[[], "Stats"]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Any]:
        """Yield metric families of prometheus-client."""
        return families(self._snapshot())


def exposition(stats: "Stats") -> str:
    """Return a snapshot in the text format, version 0.0.4. Raises TwigError without prometheus-client."""
    client = _client("prometheus_client")
    registry = client.CollectorRegistry()
    registry.register(Collector(lambda: stats))
    text: str = client.generate_latest(registry).decode()
    return text


def families(stats: "Stats") -> Iterator[Any]:
    """Yield the metric families of a snapshot, times in seconds and sizes in bytes, as Prometheus wants them."""
    core = _client("prometheus_client.core")

    def counter(name: str, help: str, value: float | Mapping[str, float], label: str = "") -> Any:
        return _filled(core.CounterMetricFamily, name, help, value, label)

    def gauge(name: str, help: str, value: float | Mapping[str, float], label: str = "") -> Any:
        return _filled(core.GaugeMetricFamily, name, help, value, label)

    graphs, memory, early = stats.graphs, stats.memory, stats.early
    verdicts = {verdict.value: stats.verdicts.get(verdict, 0) for verdict in Verdict}
    device = {name: size for name, size in memory.items() if name not in ("arenas", "programs")}
    yield gauge("twig_waiting_images", "Images that wait for a slot.", stats.waiting)
    yield gauge("twig_resident_images", "Images that run in a slot.", stats.resident)
    yield gauge("twig_placing_images", "Images whose objects' places are being looked for.", stats.placing)
    yield counter("twig_images", "Ended images by verdict.", verdicts, "verdict")
    yield _latency(core, stats)
    yield counter("twig_denoise_batches", "Denoise batches run.", stats.steps)
    yield counter("twig_unet_rows", "Rows of the UNet run.", stats.rows)
    yield counter("twig_unet_padded_rows", "Rows of the UNet run to fill buckets.", stats.padded_rows)
    yield counter("twig_controlnet_rows", "Rows of the ControlNet run.", stats.control_rows)
    yield counter("twig_early_verdicts", "Early verdicts given.", early["verdicts"])
    yield counter(
        "twig_early_verdicts_contradicted", "Early verdicts that the final one denied.", early["contradicted"]
    )
    yield counter("twig_unet_rows_saved", "Rows of the UNet that early verdicts saved.", early["rows_saved"])
    yield counter("twig_batch_seconds", "Time in batches by kind.", dict(stats.seconds), "kind")
    yield counter("twig_scheduling_seconds", "Time between batches.", stats.scheduling)
    yield gauge("twig_cuda_graphs", "CUDA graphs held.", graphs.captured)
    yield counter(
        "twig_cuda_graph_runs", "Network calls by CUDA graph.", {"hit": graphs.hits, "miss": graphs.misses}, "graph"
    )
    yield counter("twig_cuda_graph_capture_seconds", "Time spent capturing CUDA graphs.", graphs.seconds)
    yield gauge("twig_arena_bytes", "Memory that arenas and buffers take.", memory["arenas"])
    yield gauge("twig_program_bytes", "Files of the programs that compiled networks hold.", memory["programs"])
    yield gauge("twig_programs", "Programs of compiled networks by state.", _programs(stats), "state")
    yield gauge("twig_device_memory_bytes", "Memory allocated and reserved on the GPU.", device, "state")
    yield _backends(core, stats)


def _programs(stats: "Stats") -> dict[str, float]:
    """How many programs are held, still to come in the background, and could not be compiled there."""
    told = stats.programs
    held = sum(map(len, told.get("held", {}).values()))
    return {"held": held, "coming": len(told.get("coming", ())), "failed": len(told.get("failed", ()))}


def _filled(family: Any, name: str, help: str, value: float | Mapping[str, float], label: str) -> Any:
    """A family of one sample, or of one for each value of its label."""
    if not isinstance(value, dict):
        return family(name, help, value=value)
    filled = family(name, help, labels=[label])
    for name_of_value, each in value.items():
        filled.add_metric([name_of_value], each)
    return filled


def _latency(core: Any, stats: "Stats") -> Any:
    name = "twig_request_latency_seconds"
    family = core.SummaryMetricFamily(name, "Time from arrival to verdict of images that were judged.")
    for percentile, seconds in stats.latency.items() if stats.judged else ():
        family.add_sample(name, {"quantile": f"{int(percentile.removeprefix('p')) / 100:g}"}, seconds)
    family.add_metric([], count_value=stats.judged, sum_value=stats.latency_sum)
    return family


def _backends(core: Any, stats: "Stats") -> Any:
    family = core.GaugeMetricFamily("twig_backend_info", "What runs each network.", labels=["network", "backend"])
    for network, chosen in stats.backends.items():
        family.add_metric([network, chosen["backend"]], 1)
    return family


def _client(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise TwigError(
            "metrics for Prometheus need prometheus-client: pip install 'twig-engine[serve]', or read Stats.as_dict()"
        ) from error

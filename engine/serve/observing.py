"""What can be seen of a server from outside: metrics for Prometheus, spans for OpenTelemetry. Never a prompt."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.propagate import extract
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from ..api.errors import TwigError
from ..api.event import Event, State
from ..engine import Engine
from ..exposition import families
from .labelled import labelled

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
_PHASES = {
    State.QUEUED: "queue",
    State.ENCODED: "queue",
    State.DRAFTING: "draft",
    State.SEGMENTING: "segment",
    State.WITNESSING: "segment",
    State.SEGMENTED: "segment",
    State.PLACING: "final",
    State.FINALISING: "final",
    State.JUDGING: "judge",
}
"""Name of the span that a state belongs to."""

_tracer = trace.get_tracer("twig.engine.serve")


class Metrics:
    """Counts of a server beside its engines'. Labels are routes, methods, statuses, codes: few, and nobody's.

    engines: by the names of their models, which label what they count where there are several.
    """

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engines(engines))
        self.requests = Counter(
            "twig_http_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "twig_http_request_seconds",
            "Time from a request's head to the last byte of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.errors = Counter("twig_http_errors", "Errors answered, by their code.", ["code"], registry=self.registry)
        self.open = Gauge("twig_http_open_requests", "Requests that are being answered.", registry=self.registry)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Have a value asked for whenever the page is; one that cannot be had is no number."""

        def had() -> float:
            try:
                return value()
            except TwigError:
                return math.nan

        Gauge(name, help, registry=self.registry).set_function(had)

    def page(self) -> bytes:
        """What Prometheus scrapes, in its text format."""
        return generate_latest(self.registry)


class _Engines:
    """What engines count, labelled with their models where there are several of them."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """Yield metric families."""
        if len(self._engines) > 1:
            yield from labelled("model", {name: _counted(engine) for name, engine in self._engines.items()})
        else:
            for engine in self._engines.values():
                yield from _counted(engine)


def _counted(engine: Engine) -> Iterator[Metric]:
    yield from families(engine.stats())
    yield GaugeMetricFamily("twig_queued_rows", "Rows of the UNet that wait or run.", engine.queued_rows)
    rate = engine.rows_per_second
    yield GaugeMetricFamily("twig_rows_per_second", "Rows of the UNet a second of work, lately.", rate)


@contextmanager
def admission_span() -> Iterator[trace.Span]:
    """The span of the time until a request is let in, which is told what it will cost."""
    with _tracer.start_as_current_span("admission") as span:
        yield span


class Spans:
    """Spans of one request within that of its HTTP request, a row of them for each of its images."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, trace.Span]] = {}

    def hear(self, event: Event) -> None:
        """End and begin what an event ends and begins."""
        phase = _PHASES.get(event.state)
        name, span = self._open.get(event.index, ("", None))
        if span is not None and phase == name:
            return
        if span is not None:
            if event.result is not None:
                span.set_attribute("twig.verdict", event.result.verdict)
            span.end()
            del self._open[event.index]
        if phase is not None:
            attributes = {"twig.image": event.index, "twig.attempt": event.attempt}
            self._open[event.index] = (phase, _tracer.start_span(phase, attributes=attributes))

    def close(self) -> None:
        """End what a request that was left leaves open."""
        for _, span in self._open.values():
            span.end()
        self._open.clear()


@contextmanager
def request_span(method: str, request_id: str, headers: Mapping[str, str]) -> Iterator[trace.Span]:
    """The span of an HTTP request, under the one that its headers name (W3C trace context), if they do."""
    attributes = {"http.request.method": method, "twig.request_id": request_id}
    kind, above = trace.SpanKind.SERVER, extract(headers)
    with _tracer.start_as_current_span("request", above, kind, attributes) as span:
        yield span

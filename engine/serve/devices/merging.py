"""Pages of metrics of several devices as one, each sample labelled with its device."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from ..labelled import labelled


def merged(pages: Mapping[str, str], own: Iterable[Metric] = ()) -> bytes:
    """One page of what `pages` hold by device, and of metrics of the front's `own`."""
    families = {device: text_string_to_metric_families(page) for device, page in pages.items()}
    return generate_latest(_Collected([*labelled("device", families), *own]))


@dataclass
class _Collected:
    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families

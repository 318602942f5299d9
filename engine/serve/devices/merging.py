"""Pages of metrics of several devices as one, each sample labelled with its device."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families


def merged(pages: Mapping[str, str], own: Iterable[Metric] = ()) -> bytes:
    """One page of what `pages` hold by device, and of metrics of the front's `own`."""
    families: dict[str, Metric] = {}
    for device, page in pages.items():
        for family in text_string_to_metric_families(page):
            into = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                into.samples.append(sample._replace(labels={**sample.labels, "device": device}))
    return generate_latest(_Collected([*families.values(), *own]))


@dataclass
class _Collected:
    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families

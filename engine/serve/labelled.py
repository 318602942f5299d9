"""Families of metrics of several makers as one, each sample labelled with whose it is."""

from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import Metric


def labelled(label: str, families: Mapping[str, Iterable[Metric]]) -> list[Metric]:
    """What `families` hold by the value of `label`; those of one name become one."""
    together: dict[str, Metric] = {}
    for value, held in families.items():
        for family in held:
            into = together.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [each._replace(labels={**each.labels, label: value}) for each in family.samples]
    return list(together.values())

"""Intervals of rates over pictures that come in clusters: seeds of one prompt or source are no independent trials."""

from collections.abc import Callable, Sequence

import numpy as np

_DRAWS = 2000
_SEED = 67


def bootstrap(
    clusters: Sequence[np.ndarray], statistic: Callable[[np.ndarray], float] = np.mean, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a statistic of all values, clusters drawn with replacement (Efron, 1979).

    clusters: values (N,) of each source's or prompt's pictures. Where there is one, its values are drawn instead.
    """
    rng = np.random.default_rng(_SEED)
    units = [np.array([value]) for value in clusters[0]] if len(clusters) == 1 else list(clusters)
    picks = rng.integers(len(units), size=(_DRAWS, len(units)))
    drawn = [statistic(np.concatenate([units[i] for i in pick])) for pick in picks]
    tail = (1 - confidence) / 2
    return float(np.quantile(drawn, tail)), float(np.quantile(drawn, 1 - tail))

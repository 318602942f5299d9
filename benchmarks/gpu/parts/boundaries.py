"""What happens between steps: encoding, starting, segmenting, placing and judging; and how soon a cancel acts."""

import time
from collections.abc import Iterator

import numpy as np
import torch

from ....engine.api.event import State
from ....engine.api.mechanisms import MovedControl
from ....engine.api.settings import Stage
from ....engine.avoidance.placement import moved_labels
from ....engine.engine import Engine
from ...printing import Row
from ...workloads import closed
from ..bench import Bench
from ..models import random_components
from ..stepping import Stepper, engine


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of each kind of batch at one job and at a full engine, of placing alone, and of cancelling."""
    components = random_components(bench)
    served, asked = (engine(bench, components, bench.pick(16, 4)) for _ in range(2))
    served.warmup()
    for count in (1, served.limits.slots):
        for batch, ms in batches(bench, served, count).items():
            yield {"measure": "boundary", "batch": batch, "jobs": count, "ms": ms, "ms_a_job": ms / count}
    yield placing(bench, served)
    asked.warmup()  # an engine of its own: the other's steps were taken behind its back
    yield cancelling(bench, asked)


def batches(bench: Bench, served: Engine, count: int) -> dict[str, float]:
    """Milliseconds of each kind of batch, the median of a few; the first is not counted."""
    stepper = Stepper(served, "conditional")
    found: dict[str, list[float]] = {}
    for turn in range(bench.pick(7, 2)):
        for name, call in stepper.phases(count).items():
            seconds = bench.elapsed(call)
            if turn:
                found.setdefault(name, []).append(seconds)
    return {name: 1e3 * float(np.median(seconds)) for name, seconds in found.items()}


def placing(bench: Bench, served: Engine) -> Row:
    """Milliseconds of the host for the search of a moved map of three objects, at the model's own size."""
    segmenter = served.components.segmenter
    assert segmenter is not None
    pixels = torch.zeros(1, 3, *served.components.size, device=bench.device)
    labels, spent = segmenter(pixels)[0].cpu().numpy(), []
    for seed in range(bench.pick(10, 2)):
        began = time.process_time()
        moved_labels(labels, segmenter.background, MovedControl(), seed=seed)
        spent.append(time.process_time() - began)
    return {"measure": "placing", "cpu_ms": 1e3 * float(np.median(spent)), "size": labels.shape}


def cancelling(bench: Bench, served: Engine) -> Row:
    """Milliseconds from a cancel in a full engine until its request has ended, and the steps that took."""
    stage = Stage(steps=50)
    asked = [r.model_copy(update={"draft": stage, "final": stage}) for r in closed(served.limits.slots, 50, 77)]
    spent, steps = [], []
    for turn in range(bench.pick(5, 1)):
        ids = [served.submit(request) for request in asked]
        for _ in range(bench.pick(12, 4) + turn):
            served.step()
        before, began = served.stats().steps, time.perf_counter()
        served.cancel(ids[0])
        while not any(event.id == ids[0] and event.state is State.CANCELLED for event in served.step()):
            assert served.pending, "the cancelled request never ended"
        spent.append(time.perf_counter() - began)
        steps.append(served.stats().steps - before)
        for other in ids[1:]:
            served.cancel(other)
        served.drain()
    return {"measure": "cancel", "ms": 1e3 * float(np.median(spent)), "steps": max(steps), "ok": max(steps) <= 2}

"""How fast the engine denoises: steps a second, milliseconds, utilisation and idle share by rows, and a profile.

A step is timed as a user waits for it: planning on the host, its copy, graphs, with the device's queue kept full.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from ....engine.engine import Engine
from ...printing import Row
from ..bench import Bench, named
from ..models import architecture, random_components
from ..roofline import Traced, Tracer
from ..stepping import ROWS_A_JOB, Controlled, Stepper, engine, row_counts
from .machine import products

STAGES: dict[str, Controlled | None] = {
    "draft": None, "final, control on the conditional row": "conditional", "final, control on both rows": "both",
}  # fmt: skip
_PROFILED = 32

_CLASSES = {
    "attention": r"flash|fmha|attention|sdpa|cudnn.*attn",
    "convolution": r"conv|fprop|implicit|winograd|xmma.*nhwc",
    "masked attention": r"masked_attention",
    "matrix product": r"gemm|nvjet|cublas|cutlass|matmul|splitk",
    "norm": r"norm|RowwiseMoments|rowwise",
    "layout": r"nchwToNhwc|nhwcToNchw|transpose|permute|CatArray|copy",
    "step and gather": r"denoise_step|gather_rows|index",
    "elementwise": r"elementwise|vectorized|silu|gelu|add|mul|triton_poi",
}
"""Classes of kernels by what their names hold, the first that fits but for masked attention, which comes before all."""


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of steps at each size, after them profiles by kernel, and by operator of eager steps."""
    served = engine(bench, random_components(bench))
    yield {"measure": "warm-up", **_plain(served.warmup()), "memory": bench.allocated()}
    ceiling = matmul_ceiling(bench)
    trace = Tracer(architecture(bench))(1)
    for stage, controlled in STAGES.items():
        stepper = Stepper(served, controlled)
        for rows in row_counts(bench):
            yield step_row(bench, stepper, stage, rows, trace, ceiling)
    yield from replay_profile_rows(bench, served)
    yield from profile_rows(bench, served)


def _plain(report: dict[str, object]) -> Row:
    return {name: str(value) if isinstance(value, list) else value for name, value in report.items()}


def matmul_ceiling(bench: Bench) -> float:
    """Operations a second of the fastest large matrix product in the bench's number type."""
    return max(
        flops / bench.timed(call, bench.pick(20, 2))["p50"]
        for kind, call, flops in products(bench)
        if kind == named(bench.dtype)
    )


def step_row(bench: Bench, stepper: Stepper, stage: str, rows: int, trace: Traced, ceiling: float) -> Row:
    """Steps a second of `rows` rows; operations are those of the rows that are asked for, padding left out."""
    jobs = stepper.jobs(rows // ROWS_A_JOB)
    steps = bench.pick(20, 2)
    stepper.run(jobs, 3 if bench.cuda else 1)
    seconds = bench.elapsed(lambda: stepper.run(jobs, steps)) / steps
    busy = sum(kernel_times(lambda: stepper.run(jobs, 4)).values()) / 4 if bench.cuda else seconds
    controlled = {None: 0, "conditional": len(jobs), "both": rows}[STAGES[stage]]
    flops = trace.flops(False) * rows + (trace.flops(True) - trace.flops(False)) * controlled
    return {
        "measure": "step", "stage": stage, "rows": rows, "control_rows": controlled, "precision": named(bench.dtype),
        "ms": 1e3 * seconds, "steps_per_second": 1 / seconds, "job_steps_per_second": len(jobs) / seconds,
        "tflop": flops / 1e12, "mfu": flops / seconds / ceiling, "idle": max(0.0, 1 - busy / seconds),
        "kernel_ms": 1e3 * busy,
    }  # fmt: skip


def kernel_times(call: Callable[[], object]) -> Counter[str]:
    """Seconds on the device by kernel."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    times: Counter[str] = Counter()
    for event in profiled.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name] += event.time_range.elapsed_us() / 1e6
    return times


def class_of(kernel: str) -> str:
    """Class of a kernel by its name."""
    if re.search(_CLASSES["masked attention"], kernel):
        return "masked attention"
    return next((name for name, holds in _CLASSES.items() if re.search(holds, kernel, re.IGNORECASE)), "other")


def profile_rows(bench: Bench, served: Engine) -> Iterator[Row]:
    """Device time of eager steps by PyTorch's operator."""
    rows = min(_PROFILED, row_counts(bench)[-1])
    stepper = Stepper(served, "both")
    jobs = stepper.jobs(rows // ROWS_A_JOB)
    stepper.run(jobs, 1)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.cuda else [])]
    steps = bench.pick(3, 1)
    with profile(activities=kinds) as profiled:
        stepper.run(jobs, steps)
        bench.synchronize()
    total = {e.key: e.self_device_time_total if bench.cuda else e.self_cpu_time_total for e in profiled.key_averages()}
    counts = {event.key: event.count for event in profiled.key_averages()}
    operators = {name: us for name, us in total.items() if us and name.startswith(("aten::", "twig::"))}
    for name, us in sorted(operators.items(), key=lambda pair: -pair[1])[:20]:
        yield {
            "measure": "operator", "rows": rows, "operator": name, "calls": counts[name] / steps,
            "ms": us / 1e3 / steps, "share": us / sum(operators.values()),
        }  # fmt: skip


def replay_profile_rows(bench: Bench, served: Engine) -> Iterator[Row]:
    """Device time of replayed steps, all rows controlled, by class of kernel and by kernel."""
    if not bench.cuda:
        return
    for rows in (row_counts(bench)[0], min(_PROFILED, row_counts(bench)[-1])):
        stepper = Stepper(served, "both")
        jobs, steps = stepper.jobs(rows // ROWS_A_JOB), 5
        stepper.run(jobs, 2)
        times = kernel_times(partial(stepper.run, jobs, steps))
        classes: Counter[str] = Counter()
        for kernel, seconds in times.items():
            classes[class_of(kernel)] += seconds
        for which, found in (("kernel-class", classes), ("kernel", times)):
            for name, seconds in found.most_common(25):
                yield {
                    "measure": which, "rows": rows, "name": name[:160], "ms": 1e3 * seconds / steps,
                    "share": seconds / sum(times.values()),
                }  # fmt: skip

"""Backends side by side: one denoising call, the whole two-step job, and a warm start, each with its picture quality.

    python -m twig.benchmarks.backends --quick

Every backend runs the same calls in interleaved rounds. `ratio` is PyTorch eager fp32's median over the backend's;
for jobs, the plain PyTorch reference's. SSIM compares with PyTorch fp32: final pictures, drafts, and finals that were
given PyTorch's draft and mask, for where rounding errors change a draft's mask the final may be another picture.
Nothing is timed unless PyTorch fp32 draws the reference's pictures. A warm start is a process of its own, from its
start to its end, with one picture drawn and all artifacts cached.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..engine.api.choices import Precision
from ..engine.api.errors import BackendError, InvalidRequestError
from ..engine.api.request import GenerationRequest
from ..engine.api.result import GenerationResult
from ..engine.batching.scheduler import Limits
from ..engine.engine import Engine
from ..engine.models.checkpoint import load
from ..engine.models.tensors import Network, Sizes, control_inputs, unet_inputs
from ..export.build import ArtifactBuilder
from ..export.graph import example_inputs
from ..export.parity import image_ssim
from ..export.store import ArtifactStore
from . import contenders
from .clocks import ClockKind, stopwatch
from .contenders import EngineContender, Reference
from .options import ClockOption, DeviceOption, ModelOption, OutOption, QuickOption, Setup, ThreadsOption, set_up
from .rows import percentiles, write_rows
from .workloads import closed

VARIANTS = (
    ("torch", "fp32"),
    ("torch", "bf16"),
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("tensorrt", "fp16"),
)
BASELINE = "torch fp32"
REFERENCE = "reference fp32"
_TAIL = 2000

Row = dict[str, object]


@dataclass(frozen=True)
class Plan:
    """How much is measured. scales: sides as multiples of the model's own; jobs: requests a job; steps: of a stage.

    pictures: drawn to compare backends by, at the model's own size; an eighth of them at twice that.
    """

    batches: tuple[int, ...]
    scales: tuple[int, ...]
    rounds: int
    jobs: tuple[int, ...]
    steps: int
    job_rounds: int
    pictures: int


FULL = Plan(batches=(1, 4, 8), scales=(1, 2), rounds=9, jobs=(1, 8), steps=20, job_rounds=3, pictures=64)
QUICK = Plan(batches=(1, 8), scales=(1,), rounds=3, jobs=(4,), steps=4, job_rounds=1, pictures=4)


def main(
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
    clock: ClockOption = None,
    quick: QuickOption = False,
    store: Annotated[Path | None, typer.Option(help="Artifact store; the user's own.")] = None,
    first_picture: Annotated[str | None, typer.Option(hidden=True)] = None,
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Measure every backend that runs here, print, and write rows to OUT/backends.jsonl."""
    plan = QUICK if quick else FULL
    if first_picture is not None:
        torch.set_num_threads(threads)
        _pictures(make_engine(model, device, Limits(16, 16), store, first_picture).generate(closed(1, plan.steps)))
        return
    setup = set_up(model, device, Precision.FLOAT32, threads, clock, slots=16, rows=16)
    command = [sys.executable, "-m", "twig.benchmarks.backends", "--device", device, "--threads", str(threads)]
    for name, value in (("--model", model), ("--store", store)):
        command += [name, str(value)] if value else []
    if quick:
        command.append("--quick")
    for row in write_rows(out / "backends.jsonl", measure(setup, plan, store, model, command)):
        print(line(row))


def measure(setup: Setup, plan: Plan, store: Path | None, model: str | None, command: Sequence[str]) -> Iterator[Row]:
    """Rows of calls, jobs and warm starts; `command` is this program's own, for the latter. Raises Disagreement."""
    common = {"benchmark": "backends", **setup.describe()}
    engines = make_engines(setup, store, model)
    same: dict[str, contenders.Contender] = {
        contenders.REFERENCE: Reference(setup.models.plain),
        BASELINE: EngineContender(engines[BASELINE]),
    }
    contenders.gate(same, closed(plan.jobs[-1], plan.steps), setup.least_ssim)
    for scale in plan.scales:
        asked = {count: _scaled(setup, closed(count, plan.steps), scale) for count in plan.jobs}
        able = {name: engine for name, engine in engines.items() if _takes(name, engine, asked[plan.jobs[0]][0])}
        compared = closed(max(1, plan.pictures // scale**3), plan.steps)
        quality = qualities(able, _scaled(setup, compared, scale))
        for batch in plan.batches:
            calls = {name: denoising_call(engine, batch, scale) for name, engine in able.items()}
            for name, row in _rows(calls, plan.rounds, setup.clock, BASELINE, batch):
                where = {"workload": "unet+controlnet", "batch": batch, "scale": scale}
                yield {**common, **where, **row, **quality[name]}
        for count, requests in asked.items():
            jobs: dict[str, Callable[[], object]] = {REFERENCE: partial(Reference(setup.models.plain), requests)}
            jobs |= {name: partial(EngineContender(engine), requests) for name, engine in able.items()}
            for name, row in _rows(jobs, plan.job_rounds, setup.clock, REFERENCE, count):
                where = {"workload": "two-step job", "batch": count, "scale": scale}
                yield {**common, **where, **row, **quality.get(name, {})}
    for name in engines:
        yield {**common, "workload": "warm start", "variant": name, "batch": 1, **warm_start(command, name)}


def qualities(engines: Mapping[str, Engine], requests: Sequence[GenerationRequest]) -> dict[str, Row]:
    """SSIM to PyTorch fp32 of finals, of drafts, and of finals from PyTorch's own draft and mask."""
    expected = engines[BASELINE].generate(requests)
    given = [
        request.model_copy(update={"source": result.draft, "mask": result.mask})
        for request, result in zip(requests, expected, strict=True)
    ]
    expected_given = _pictures(engines[BASELINE].generate(given))
    found: dict[str, Row] = {}
    for name, engine in engines.items():
        results = engine.generate(requests)
        found[name] = {
            "ssim": image_ssim(_pictures(expected), _pictures(results)),
            "ssim_drafts": image_ssim(_pictures(expected, "draft"), _pictures(results, "draft")),
            "ssim_given_mask": image_ssim(expected_given, _pictures(engine.generate(given))),
        }
    return found


def _pictures(results: Sequence[GenerationResult], which: str = "image") -> list[Any]:
    """Return finals or drafts. Raises RuntimeError where a request failed."""
    if failed := [result.error for result in results if result.image is None]:
        raise RuntimeError(f"{len(failed)} of {len(results)} requests failed, the first with: {failed[0]}")
    return [getattr(result, which) for result in results]


def _scaled(setup: Setup, requests: Sequence[GenerationRequest], scale: int) -> list[GenerationRequest]:
    height, width = setup.models.plain.size
    return [request.model_copy(update={"height": scale * height, "width": scale * width}) for request in requests]


def _takes(name: str, engine: Engine, request: GenerationRequest) -> bool:
    """Whether the backend was built for pictures of this size."""
    assert request.height is not None
    assert request.width is not None
    try:
        engine.networks.check_size(request.height, request.width)
    except InvalidRequestError as error:
        print(f"{name} is left out at {request.width} x {request.height}: {error}")
        return False
    return True


def make_engines(setup: Setup, store: Path | None, model: str | None) -> dict[str, Engine]:
    """An engine for each variant that runs here."""
    engines = {}
    for backend, precision in VARIANTS:
        variant = f"{backend} {precision}"
        try:
            engine = make_engine(model, setup.models.device, setup.limits, store, variant)
            (result,) = engine.generate(closed(1, 2))
            if result.error is not None:
                raise BackendError(result.error)
        except BackendError as error:
            print(f"{variant} is left out: {error}")
            continue
        engines[variant] = engine
    return engines


def make_engine(model: str | None, device: str, limits: Limits, store: Path | None, variant: str) -> Engine:
    """Engine of one variant; PyTorch takes its precision from the weights, other backends from their artifacts."""
    backend, precision = variant.split()
    dtype = torch.bfloat16 if variant == "torch bf16" else torch.float32
    return Engine(
        load(model, dtype=dtype, device=device), device=device, dtype=dtype, limits=limits, backend=backend,
        precision=precision, artifacts=ArtifactBuilder(ArtifactStore(store)),
    )  # fmt: skip


def denoising_call(engine: Engine, rows: int, scale: int) -> Callable[[], object]:
    """ControlNet on all rows, then the UNet with its residuals."""
    networks = engine.networks
    usual = networks.usual_sizes(Network.UNET, rows)
    sizes = Sizes(rows, scale * usual.height, scale * usual.width)
    calls = [
        tuple(t.to(networks.device) for t in example_inputs(networks.specs[network], sizes, networks.dtype))
        for network in (Network.CONTROLNET, Network.UNET)
    ]
    control, unet = control_inputs(calls[0], networks.denoiser), unet_inputs(calls[1], networks.denoiser)

    @torch.inference_mode()
    def call() -> None:
        networks.predict(unet._replace(residuals=networks.control(control)))

    return call


def warm_start(command: Sequence[str], variant: str) -> Row:
    """Seconds of a new process that draws one picture, from its start to its end. Raises RuntimeError if it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ended = subprocess.run([*command, "--first-picture", variant], check=False, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"no picture from a new process of {variant}: {ended.stderr.strip()[-_TAIL:]}")
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return {"seconds": wall, "cpu_seconds": used}


def _rows(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: ClockKind, baseline: str, images: int
) -> Iterator[tuple[str, Row]]:
    """Time `calls` in interleaved rounds, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            with stopwatch() as spent:
                call()
            if turn:
                seconds[name].append(spent.on(clock))
    base = percentiles(seconds[baseline])["p50"]
    for name, taken in seconds.items():
        points = percentiles(taken)
        per_row = {f"ms_per_row_{point}": 1000 * value / images for point, value in points.items()}
        yield name, {"variant": name, **per_row, "ratio": base / points["p50"], "rounds": rounds}


def line(row: Mapping[str, object]) -> str:
    """One row for people."""
    head = f"{row['workload']:16} {row['variant']:18} batch {row['batch']:<3} scale {row.get('scale', 1)} "
    if "seconds" in row:
        return f"{head} {row['seconds']:8.2f} s wall {row['cpu_seconds']:8.2f} s cpu"
    names = {"ssim": "SSIM", "ssim_drafts": "drafts", "ssim_given_mask": "given the mask"}
    quality = "".join(f"  {label} {row[key]:.4f}" for key, label in names.items() if key in row)
    unit = "picture" if row["workload"] == "two-step job" else "row"
    return f"{head} {row['ms_per_row_p50']:9.2f} ms a {unit:8}x{row['ratio']:.2f}{quality}"


if __name__ == "__main__":
    typer.run(main)

"""ONNX Runtime and TensorRT on the device, where they are installed: parity and speed on the embedded model."""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ....engine.batching.scheduler import Limits
from ....engine.engine import Engine
from ...printing import Row
from ..bench import Bench
from ..calls import as_graph, denoising_call
from ..models import embedded

NEEDS = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "tensorrt": ("onnx", "onnxscript", "tensorrt"),
}
"""Packages that a runtime takes, to build what it reads among them."""


def measure(bench: Bench) -> Iterator[Row]:
    """A row for each runtime: not installed, or how near and how fast it is."""
    rows = bench.pick(16, 2)
    for backend, packages in NEEDS.items():
        row: Row = {"measure": "runtime", "backend": backend, "rows": rows}
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            yield {**row, "skipped": f"not installed: {', '.join(missing)}"}
            continue
        with TemporaryDirectory() as folder:
            yield {**row, **compared(bench, backend, rows, Path(folder))}


def compared(bench: Bench, backend: str, rows: int, folder: Path) -> Row:
    """Error and speed of a call on a runtime against PyTorch in fp32; what it reads is built into a folder."""
    try:
        ours, theirs = (_engine(bench, name, rows, folder) for name in ("torch", backend))
        calls = [denoising_call(served.networks, rows) for served in (ours, theirs)]
        expected, actual = (call().float() for call in calls)
    except Exception as error:  # what a runtime cannot do, it says in its own way
        return {"skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    apart = float((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    eager, run = (bench.timed(call, bench.pick(20, 1))["p50"] for call in calls)
    graph = bench.timed(as_graph(calls[0]), 20)["p50"] if bench.cuda else eager
    return {"ms": 1e3 * run, "over_eager": eager / run, "over_graph": graph / run, "error": apart, "ok": apart < 0.02}


def _engine(bench: Bench, backend: str, rows: int, folder: Path) -> Engine:
    """An engine that runs UNet and ControlNet on a backend."""
    build, store = (importlib.import_module(f"....export.{name}", __package__) for name in ("build", "store"))
    return Engine(
        embedded(bench.device), device=bench.device, dtype=torch.float32, limits=Limits(slots=rows, rows=rows),
        backend=dict.fromkeys(("unet", "controlnet"), backend),
        artifacts=build.ArtifactBuilder(store.ArtifactStore(folder)),
    )  # fmt: skip

"""Command-line options that the benchmarks share."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer

from ..engine.api.choices import Precision
from ..engine.batching.scheduler import Limits
from ..engine.models.checkpoint import Components, load
from .clocks import ClockKind
from .contenders import Models

ModelOption = Annotated[str | None, typer.Option(help="Folder in diffusers' layout or hub id; the embedded model.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
DtypeOption = Annotated[Precision, typer.Option(help="Number type of the networks.")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")]
SlotsOption = Annotated[int, typer.Option(min=1, help="Jobs that the engine denoises at a time.")]
RowsOption = Annotated[int, typer.Option(min=1, help="UNet rows of one step.")]
ClockOption = Annotated[
    ClockKind | None,
    typer.Option(help="What speed is reckoned on; process time on one CPU thread, else wall."),
]
QuickOption = Annotated[bool, typer.Option("--quick", help="Fewer steps and rounds: within five minutes on two cores.")]
MinutesOption = Annotated[
    float | None, typer.Option(min=0.1, help="Machine time that measuring may take; as much as the plan asks for.")
]
OutOption = Annotated[Path, typer.Option(help="Folder for rows (JSON lines) and plots.")]


@dataclass(frozen=True)
class Setup:
    """What every benchmark runs on."""

    models: Models
    limits: Limits
    clock: ClockKind

    @property
    def least_ssim(self) -> float:
        """SSIM to the reference's picture from which on pictures count as the same."""
        return 0.999 if self.models.dtype == torch.float32 else 0.9

    def describe(self) -> dict[str, object]:
        """Columns of every row."""
        return {
            "model": self.models.plain.name,
            "device": self.models.device,
            "dtype": str(self.models.dtype).removeprefix("torch."),
            "slots": self.limits.slots,
            "row_limit": self.limits.rows,
            "clock": self.clock.value,
            "load_average": round(os.getloadavg()[0], 2),
        }


def load_plain(model: str | None, device: str, dtype: torch.dtype, threads: int) -> Callable[[], Components]:
    """What loads the model anew, each time it is called."""
    _quieten(threads)
    return partial(load, model, dtype=dtype, device=device)


def set_up(
    model: str | None, device: str, dtype: Precision, threads: int, clock: ClockKind | None, slots: int, rows: int
) -> Setup:
    """Load the models. On one CPU thread the default clock is the process's time: other programs do not stretch it."""
    _quieten(threads)
    if clock is None:
        clock = ClockKind.CPU if device == "cpu" and threads == 1 else ClockKind.WALL
    models = Models.load(model, device, getattr(torch, dtype.value))
    return Setup(models, Limits(slots=slots, rows=rows), clock)


def _quieten(threads: int) -> None:
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    logging.getLogger("diffusers").setLevel(logging.ERROR)

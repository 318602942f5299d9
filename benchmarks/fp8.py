"""What eight bits cost in pictures: `python -m twig.benchmarks.fp8`, on the embedded model or another.

The same requests are drawn by PyTorch as it is, by its blocks on our operators, and by these with their linear layers
and 1x1 convolutions in eight bits, emulated number by number where there is no device for them. SSIM is to PyTorch as
it is; `benchmarks.backends` says of what. No time is told: emulation is slow.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ..engine.api.choices import Precision
from ..engine.backends.options import TorchOptions
from ..engine.engine import Engine
from ..engine.models.checkpoint import load
from .backends import BASELINE, qualities
from .options import DeviceOption, ModelOption, OutOption, Setup, ThreadsOption, set_up
from .printing import Row
from .rows import write_rows
from .workloads import closed

VARIANTS = {
    BASELINE: TorchOptions(fused=False),
    "torch fused": TorchOptions(fused=True),
    "torch fp8": TorchOptions(fp8=True),
}


def measure(setup: Setup, model: str | None, pictures: int, steps: int) -> Iterator[Row]:
    """A row for each variant but the baseline: SSIM of finals, drafts, and finals given the baseline's mask."""
    device, dtype = setup.models.device, setup.models.dtype
    common = {"benchmark": "fp8", **setup.describe(), "pictures": pictures, "steps": steps}
    engines = {
        name: Engine(
            load(model, dtype=dtype, device=device), device=device, dtype=dtype, limits=setup.limits,
            torch_options=options,
        )
        for name, options in VARIANTS.items()
    }  # fmt: skip
    found = qualities(engines, closed(pictures, steps))
    for name in list(VARIANTS)[1:]:
        yield {**common, "variant": name, **found[name]}


def main(
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = 1,
    pictures: Annotated[int, typer.Option(help="Pictures drawn by each variant.")] = 32,
    steps: Annotated[int, typer.Option(help="Steps of draft and final.")] = 20,
    out: OutOption = Path("out/benchmarks"),
) -> None:
    """Draw, compare, print, and write rows to OUT/fp8.jsonl."""
    setup = set_up(model, device, Precision.FLOAT32, threads, None, slots=16, rows=16)
    for row in write_rows(out / "fp8.jsonl", measure(setup, model, pictures, steps)):
        typer.echo(
            f"{row['variant']:12} SSIM {row['ssim']:.4f}  drafts {row['ssim_drafts']:.4f}  "
            f"given the mask {row['ssim_given_mask']:.4f}"
        )


if __name__ == "__main__":
    typer.run(main)

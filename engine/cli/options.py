"""Options that commands share, and the engine they ask for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..api.errors import InvalidRequestError
from ..engine import Engine
from ..records.manifest import Precision

ModelOption = Annotated[str | None, typer.Option(help="Folder in diffusers' layout or hub id; else the package's own.")]
ControlNetOption = Annotated[str | None, typer.Option(help="Folder or hub id of a ControlNet; else the model's own.")]
SegmenterOption = Annotated[str | None, typer.Option(help="Folder or hub id of a segmenter; else the model's own.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; else a GPU if there is one.")]
DtypeOption = Annotated[Precision | None, typer.Option(help="Number type of the networks; else float32.")]
CalibrationOption = Annotated[
    Path | None, typer.Option(help="Limits that `twig calibrate` found; else those in the model's folder.")
]
RegistryOption = Annotated[
    Path | None,
    typer.Option(help="File of protected works that `twig registry` made; pictures are compared with them."),
]
RuleOption = Annotated[
    str | None,
    typer.Option(
        help="When a picture is refused or left to a person, e.g. 'refuse if ssim_masked > 0.45 or tile_l2 < 0.1; "
        "review if ms_ssim > 0.4; retry 2; then review'; or @FILE of such clauses, one a line."
    ),
]


def load_engine(
    parts: Mapping[str, str],
    device: str | None = None,
    dtype: str | None = None,
    calibration: Path | None = None,
    registry: Path | None = None,
) -> Engine:
    """Return the engine of the `parts` a user named, on the `device` named, else on a GPU if there is one."""
    source, others = parts.get("source"), {name: path for name, path in parts.items() if name != "source"}
    precision = getattr(torch, dtype or Precision.FLOAT32)
    files = given(calibration=calibration, registry=registry)
    return Engine.from_pretrained(source, **others, **files, device=served_device(device), dtype=precision)


def served_device(name: str | None) -> str:
    """The device named, if it is here; raises InvalidRequestError naming those that are."""
    gpus = torch.cuda.device_count()
    served = ["cpu", *["cuda"][:gpus], *(f"cuda:{number}" for number in range(gpus))]
    if name is not None and name not in served:
        raise InvalidRequestError(f"there is no device {name!r} here; there is {', '.join(served)}")
    return name or ("cuda" if gpus else "cpu")


def parts_named(**named: str | None) -> dict[str, str]:
    """What the user named; a folder by its full path, so that a replay finds it from anywhere."""
    return {part: str(Path(name).resolve()) if Path(name).exists() else name for part, name in given(**named).items()}


def given(**options: Any) -> dict[str, Any]:
    """Only the options that were given: what was not keeps the default of the class it goes to."""
    return {name: value for name, value in options.items() if value is not None}

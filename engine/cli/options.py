"""Options that commands share, and what they say together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..api.choices import Backend, Compute, Precision, Prediction
from ..api.errors import InvalidRequestError
from ..api.reading import shown

DRAWING, AVOIDING, JUDGING, MODEL, OUTPUT = "Drawing", "Avoiding", "Judging", "Model", "Output"
"""What options are grouped under in a command's help."""

ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Folder in diffusers' layout, single .safetensors file or hub id; else the package's own.",
        rich_help_panel=MODEL,
    ),
]
ControlNetOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]PATH",
        help="Folder, single file or hub id of the ControlNet that follows the moved map; else the model's own. May be "
        "repeated, with NAME=PATH for further ones, which follow pictures of yours.",
        rich_help_panel=MODEL,
    ),
]
ControlOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FILE[:SCALE]",
        help="Picture that the further ControlNet NAME follows, in draft and final; may be repeated.",
        rich_help_panel=DRAWING,
    ),
]
SegmenterOption = Annotated[
    str | None, typer.Option(help="Folder or hub id of a segmenter; else the model's own.", rich_help_panel=MODEL)
]
VaeOption = Annotated[
    str | None,
    typer.Option(help="Folder, single file or hub id of an autoencoder; else the model's own.", rich_help_panel=MODEL),
]
PreviewVaeOption = Annotated[
    str | None,
    typer.Option(
        help="Folder, single file or hub id of a small autoencoder, TAESD's layout, that shows drafts and previews.",
        rich_help_panel=MODEL,
    ),
]
EmbeddingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="FILE[:TOKEN]",
        help="A textual inversion, safetensors, whose word prompts may use; again for another.",
        rich_help_panel=MODEL,
    ),
]
VariantOption = Annotated[
    str | None,
    typer.Option(
        help="Variant of weights, such as fp16, where a part has it; ema of a single file.", rich_help_panel=MODEL
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the model's hub id.", rich_help_panel=MODEL)
]
PredictionOption = Annotated[
    Prediction | None,
    typer.Option(help="What the UNet predicts; else as the model's files say.", rich_help_panel=MODEL),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:WEIGHT]",
        help="LoRA that becomes a part of the weights; several add up.",
        rich_help_panel=MODEL,
    ),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FILE",
        help="LoRA that is kept beside the weights, for --use and --draft-use; several share a batch.",
        rich_help_panel=MODEL,
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; else a GPU if there is one.", rich_help_panel=MODEL)
]
DtypeOption = Annotated[
    Precision | None, typer.Option(help="Number type of the networks; else float32.", rich_help_panel=MODEL)
]
BackendOption = Annotated[
    Backend | None,
    typer.Option(
        help="What runs the networks; else torch. Others compile them when first asked, and find them from then on; "
        "auto takes the fastest that is installed.",
        rich_help_panel=MODEL,
    ),
]
ComputeOption = Annotated[
    Compute | None,
    typer.Option("--precision", help="What compiled networks compute in; else fp32.", rich_help_panel=MODEL),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(help="Limits that `twig calibrate` found; else those in the model's folder.", rich_help_panel=JUDGING),
]
BankOption = Annotated[
    Path | None,
    typer.Option(
        help="Bank of shapes that `twig calibrate` gathered; else that in the model's folder.", rich_help_panel=AVOIDING
    ),
]
RegistryOption = Annotated[
    Path | None,
    typer.Option(
        help="File of protected works that `twig registry` made; pictures are compared with them.",
        rich_help_panel=JUDGING,
    ),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=FILE]",
        help="Further measure, which rules may name: lpips (with the extra [lpips]; its name is st_lpips), lpips=FILE, "
        "clip=FOLDER. May be repeated.",
        rich_help_panel=JUDGING,
    ),
]
RuleOption = Annotated[
    str | None,
    typer.Option(
        help="When a picture is refused or left to a person, e.g. 'refuse if ssim_masked > 0.45 or tile_l2 < 0.1; "
        "review if ms_ssim > 0.4; retry 2; then review'; or @FILE of such clauses, one a line.",
        rich_help_panel=JUDGING,
    ),
]
SourceOption = Annotated[
    Path | None,
    typer.Option(help="Picture that takes the draft's place; only its mask goes on.", rich_help_panel=AVOIDING),
]
MaskOption = Annotated[
    Path | None,
    typer.Option(help="Picture of the final's size, white where its shape is avoided.", rich_help_panel=AVOIDING),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Say it as JSON on stdout, all else on stderr.", rich_help_panel=OUTPUT)
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Say nothing but errors, and what --json says.", rich_help_panel=OUTPUT)
]


@dataclass(frozen=True)
class Manner:
    """How a command speaks. json: for programs, on stdout. quiet: neither progress nor words, errors apart."""

    json: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class EngineChoice:
    """The engine that a user asks for: parts of the model, machine, limits, works, largest picture, bank of shapes,
    further measures.

    backend, precision: what runs the networks, and what they compute in where they are compiled.
    lora: FILE or FILE:WEIGHT of each adapter to be fused; adapters: NAME=FILE of each that is kept.

    What is None is left to the package: its own model, that model's parts, limits and shapes, a GPU if there is one,
    float32, no protected works, and the engine's own limit of pixels.
    """

    model: str | None = None
    controlnet: Sequence[str] | None = None
    segmenter: str | None = None
    vae: str | None = None
    variant: str | None = None
    revision: str | None = None
    device: str | None = None
    dtype: Precision | None = None
    backend: Backend | Mapping[str, str] | None = None
    precision: Compute | None = None
    calibration: Path | None = None
    registry: Path | None = None
    limit_pixels: int | None = None
    bank: Path | None = None
    metrics: tuple[str, ...] = ()
    preview_vae: str | None = None
    prediction_type: Prediction | None = None
    embeddings: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()


def given(**options: Any) -> dict[str, Any]:
    """Only the options that were given: what was not keeps the default of the class it goes to."""
    return {name: value for name, value in options.items() if value is not None}


def weighted(adapters: Sequence[str] | None) -> dict[str, float] | None:
    """Weights by name, of NAME or NAME:WEIGHT each; None where none was given. Raises InvalidRequestError."""
    if not adapters:
        return None
    found: dict[str, float] = {}
    for given in adapters:
        name, _, weight = given.partition(":")
        try:
            found[name] = float(weight or 1)
        except ValueError as error:
            raise InvalidRequestError(f"{shown(given, 200)}: an adapter's weight is a number, NAME:0.8") from error
    return found

"""The command `twig calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from ..api.choices import Solver
from ..api.errors import InvalidRequestError
from . import actions
from .options import (
    BackendOption,
    ComputeOption,
    ControlNetOption,
    DeviceOption,
    DtypeOption,
    EngineChoice,
    JsonOption,
    LoraOption,
    Manner,
    ModelOption,
    PredictionOption,
    QuietOption,
    RegistryOption,
    RevisionOption,
    SegmenterOption,
    VaeOption,
    VariantOption,
    given,
)


def calibrate(
    captions: Annotated[
        Path | None, typer.Option(help="Text file of captions, one a line, of things the model has not memorised.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of your own pictures that have nothing to do with one another.")
    ] = None,
    label_maps: Annotated[
        Path | None,
        typer.Option(help="Folder of label maps to gather shapes from too: a pixel is the number of its label."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("calibration.json"),
    bank: Annotated[
        Path | None, typer.Option(help="File to write the bank of shapes to; else bank.safetensors beside --out.")
    ] = None,
    per_caption: Annotated[int, typer.Option(min=1, help="Pairs drawn from each caption.")] = 8,
    pairs: Annotated[int, typer.Option(min=1, help="Most pairs compared of the folder's pictures.")] = 2000,
    quantile: Annotated[float, typer.Option(help="Share of the clean pairs that keeps each limit.")] = 0.999,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FILE]",
            help="Measure to find a limit of, or a further one as of `twig generate`; may be repeated. Else the usual "
            "four.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Everything random derives from it.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of each picture; those you will generate with.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; that you will generate with.")] = None,
    solver: Annotated[Solver | None, typer.Option(help="Solver; that you will generate with.")] = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    controlnet: ControlNetOption = None,
    segmenter: SegmenterOption = None,
    vae: VaeOption = None,
    lora: LoraOption = None,
    variant: VariantOption = None,
    revision: RevisionOption = None,
    prediction_type: PredictionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    backend: BackendOption = None,
    precision: ComputeOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Find the limits that clean pictures keep, the gate's thresholds, and the shapes that new maps are composed of.

    From captions, pairs are drawn without avoidance from fresh seeds; the gate's thresholds come from these alone, and
    the shapes from drafts that it takes for no recalled ones, and from label maps. Put the files into the model's
    folder as calibration.json and bank.safetensors, or name them with `twig generate --calibration` and `--bank`.
    """
    if captions is None and pictures is None and label_maps is None:
        raise InvalidRequestError(
            "nothing to calibrate on; name captions with --captions, pictures with --pictures, label maps with "
            "--label-maps"
        )
    if not 0 < quantile < 1:
        raise InvalidRequestError(f"--quantile must lie between 0 and 1, got {quantile}")
    return actions.calibrate(
        out,
        bank,
        EngineChoice(
            model,
            controlnet,
            segmenter,
            vae,
            variant,
            revision,
            device,
            dtype,
            backend,
            precision,
            registry=registry,
            prediction_type=prediction_type,
            lora=tuple(lora or ()),
        ),
        captions=captions,
        per_caption=per_caption,
        stage=given(steps=steps, guidance_scale=guidance, solver=solver),
        pictures=pictures,
        pairs=pairs,
        label_maps=label_maps,
        metrics=metric,
        quantile=quantile,
        seed=seed,
        manner=Manner(json, quiet),
    )

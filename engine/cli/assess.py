"""The command `twig assess`: the pilot study that comes before adopting a model."""

from pathlib import Path
from typing import Annotated

import typer

from ..api.choices import Preset
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
    RevisionOption,
    SegmenterOption,
    VaeOption,
    VariantOption,
)

_COMPARED = ",".join(preset for preset in Preset if preset is not Preset.PLAIN)  # which is held against no draft

assess_app = typer.Typer(add_completion=False, invoke_without_command=True)


@assess_app.callback()
def assess(
    prompts: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Text file, a prompt a line.")],
    sources: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of the works to keep clear of.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("report"),
    seeds: Annotated[int, typer.Option(min=1, help="Pictures of each prompt under each preset.")] = 4,
    presets: Annotated[str, typer.Option(help="Presets to compare, the one without avoidance first.")] = _COMPARED,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of drafts and finals.")] = None,
    hourly_price: Annotated[float | None, typer.Option(min=0, help="What an hour of this machine costs.")] = None,
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
    """Measure how close a model comes to a folder of works, without avoidance and with it, and write a report.

    Says first about how long it takes. Writes report.html, which opens from disk, its numbers as findings.json, and
    rows.jsonl, a line for each picture. Where works and prompts make too few pairs to find limits on, the model's own
    are used, and the report says so. It shows works and prompts: it is as confidential as they are. Ctrl-C reports on
    what was drawn so far.
    """
    chosen = _chosen(presets)
    return actions.assess(
        prompts,
        sources,
        out,
        EngineChoice(
            model=model,
            controlnet=controlnet,
            segmenter=segmenter,
            vae=vae,
            variant=variant,
            revision=revision,
            device=device,
            dtype=dtype,
            backend=backend,
            precision=precision,
            prediction_type=prediction_type,
            lora=tuple(lora or ()),
        ),
        presets=chosen,
        seeds=seeds,
        steps=steps,
        hourly_price=hourly_price,
        manner=Manner(json, quiet),
    )


def _chosen(names: str) -> list[Preset]:
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in list(Preset):
            raise InvalidRequestError(f"there is no preset {name!r}; there are {', '.join(Preset)}")
    return [Preset(name) for name in chosen]

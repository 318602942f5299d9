"""The command `twig generate`."""

from pathlib import Path
from typing import Annotated

import typer

from ..api.choices import PURPOSES, Preset, Solver
from . import actions
from .options import (
    CalibrationOption,
    ControlNetOption,
    DeviceOption,
    DtypeOption,
    EngineChoice,
    MaskOption,
    ModelOption,
    RegistryOption,
    RuleOption,
    SegmenterOption,
    SourceOption,
    given,
)

_PRESETS = "; ".join(f"{preset}: {purpose}" for preset, purpose in PURPOSES.items()) + "."


def generate(
    prompts: Annotated[list[str], typer.Argument(help="What to draw; several prompts share the engine's batches.")],
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Pictures for each prompt.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("out"),
    seed: Annotated[int, typer.Option(help="Everything random derives from it.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the draft and of the final.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale of both.")] = None,
    solver: Annotated[Solver | None, typer.Option(help="Solver of both.")] = None,
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    width: Annotated[int | None, typer.Option(help="Pixels; else the model's own size.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; else the model's own size.")] = None,
    source: SourceOption = None,
    mask: MaskOption = None,
    preset: Annotated[Preset, typer.Option(help=_PRESETS)] = Preset.DEFAULT,
    gate: Annotated[
        bool | None,
        typer.Option("--gate/--always", help="Avoid only where a draft looks recalled, or always; else as preset."),
    ] = None,
    retries: Annotated[int | None, typer.Option(help="Stronger attempts after a picture that is too similar.")] = None,
    rule: RuleOption = None,
    calibration: CalibrationOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    controlnet: ControlNetOption = None,
    segmenter: SegmenterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also draw what each mechanism did.")] = False,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the audit log too.")] = False,
    sign: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="CERT KEY", help="Give pictures content credentials (C2PA), signed with these PEM files."),
    ] = None,
) -> int:
    """Draw pictures, each with a draft, the mask of its shape, a final that avoids it, and a verdict."""
    return actions.generate(
        prompts,
        out,
        EngineChoice(model, controlnet, segmenter, device, dtype, calibration, registry),
        preset=preset,
        gate=gate,
        source=source,
        mask=mask,
        settings=given(
            negative_prompt=negative, seed=seed, width=width, height=height, num_images=num_images, explain=explain
        ),
        stage=given(steps=steps, guidance_scale=guidance, solver=solver),
        judged=given(retries=retries, rule=rule),
        log_prompts=log_prompts,
        sign=sign,
    )

"""The command `twig generate`."""

from pathlib import Path
from typing import Annotated

import typer

from ..api.choices import PURPOSES, Preset, PromptSyntax, Rhythm, Sigmas, Solver, Spacing, Warp
from . import actions
from .asking import check_number, gathered_prompts, interval_of, seeds_of
from .options import (
    AVOIDING,
    DRAWING,
    JUDGING,
    MODEL,
    OUTPUT,
    AdapterOption,
    BackendOption,
    BankOption,
    CalibrationOption,
    ComputeOption,
    ControlNetOption,
    ControlOption,
    DeviceOption,
    DtypeOption,
    EmbeddingOption,
    EngineChoice,
    JsonOption,
    LoraOption,
    Manner,
    MaskOption,
    MetricOption,
    ModelOption,
    PredictionOption,
    PreviewVaeOption,
    QuietOption,
    RegistryOption,
    RevisionOption,
    RuleOption,
    SegmenterOption,
    SourceOption,
    VaeOption,
    VariantOption,
    given,
    weighted,
)

_PRESETS = "; ".join(f"{preset}: {purpose}" for preset, purpose in PURPOSES.items()) + "."


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT...",
            help="What to draw; several prompts share the engine's batches. - reads prompts from stdin, one a line.",
        ),
    ] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompts", metavar="FILE", help="File of prompts, one a line; - is stdin.", rich_help_panel=DRAWING
        ),
    ] = None,
    num_images: Annotated[
        int, typer.Option("--num-images", "-n", help="Pictures for each prompt and seed.", rich_help_panel=DRAWING)
    ] = 1,
    seed: Annotated[
        str,
        typer.Option(
            metavar="SEEDS",
            help="Everything random derives from it; 1..8 or 1-8,12 draws each prompt from each of these.",
            rich_help_panel=DRAWING,
        ),
    ] = "0",
    steps: Annotated[
        int | None, typer.Option(help="Steps of the draft and of the final.", rich_help_panel=DRAWING)
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale of both.", rich_help_panel=DRAWING)] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="START:STOP",
            help="Fractions of the steps that guidance acts in; outside it is 1, at half the cost.",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    guidance_rescale: Annotated[
        float | None,
        typer.Option(help="How much of guidance's contrast is taken back, 0 to 1.", rich_help_panel=DRAWING),
    ] = None,
    cache_interval: Annotated[
        int | None,
        typer.Option(help="Compute the whole network at every so many steps of both.", rich_help_panel=DRAWING),
    ] = None,
    cache_rhythm: Annotated[
        Rhythm | None,
        typer.Option(help="Where whole steps lie, at even distances or more of them early.", rich_help_panel=DRAWING),
    ] = None,
    solver: Annotated[
        Solver | None, typer.Option(help="Solver of both; else the model's own.", rich_help_panel=DRAWING)
    ] = None,
    spacing: Annotated[
        Spacing | None, typer.Option(help="Where timesteps lie; else as the model has it.", rich_help_panel=DRAWING)
    ] = None,
    sigmas: Annotated[
        Sigmas | None, typer.Option(help="Noise levels; else as the model has them.", rich_help_panel=DRAWING)
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(help="How much noise ddim and tcd draw anew each step, 0 to 1.", rich_help_panel=DRAWING),
    ] = None,
    draft_steps: Annotated[
        int | None, typer.Option(help="Steps of the draft alone; else as preset.", rich_help_panel=DRAWING)
    ] = None,
    draft_solver: Annotated[
        Solver | None,
        typer.Option(help="Solver of the draft alone, as it usually steps; else the final's.", rich_help_panel=DRAWING),
    ] = None,
    draft_guidance: Annotated[
        float | None, typer.Option(help="Guidance scale of the draft alone.", rich_help_panel=DRAWING)
    ] = None,
    use: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:WEIGHT]", help="Adapter that draft and final are drawn with.", rich_help_panel=DRAWING
        ),
    ] = None,
    draft_use: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:WEIGHT]", help="Adapter of the draft; else as --use.", rich_help_panel=DRAWING),
    ] = None,
    negative: Annotated[str, typer.Option(help="What not to draw.", rich_help_panel=DRAWING)] = "",
    prompt_syntax: Annotated[
        PromptSyntax | None,
        typer.Option(
            help="weighted reads (word:1.3), ((word)), [word], BREAK and \\( as the web interfaces do, plain every "
            "character as itself; else weighted.",
            rich_help_panel=DRAWING,
        ),
    ] = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(help="Last layers of the text encoder that the prompt leaves out.", rich_help_panel=DRAWING),
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Pixels; else the model's own size.", rich_help_panel=DRAWING)
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Pixels; else the model's own size.", rich_help_panel=DRAWING)
    ] = None,
    control: ControlOption = None,
    source: SourceOption = None,
    mask: MaskOption = None,
    preset: Annotated[Preset, typer.Option(help=_PRESETS, rich_help_panel=AVOIDING)] = Preset.DEFAULT,
    gate: Annotated[
        bool | None,
        typer.Option(
            "--gate/--always",
            help="Avoid only where a draft looks recalled, or always; else as preset.",
            rich_help_panel=AVOIDING,
        ),
    ] = None,
    warp: Annotated[
        Warp | None,
        typer.Option(
            help="How the final's map comes from the draft's: bank arranges what the prompt names anew out of a bank "
            "of shapes, none keeps the draft's; else as preset.",
            rich_help_panel=AVOIDING,
        ),
    ] = None,
    bank: BankOption = None,
    retries: Annotated[
        int | None, typer.Option(help="Stronger attempts after a picture that is too similar.", rich_help_panel=JUDGING)
    ] = None,
    rule: RuleOption = None,
    calibration: CalibrationOption = None,
    registry: RegistryOption = None,
    metric: MetricOption = None,
    model: ModelOption = None,
    controlnet: ControlNetOption = None,
    segmenter: SegmenterOption = None,
    vae: VaeOption = None,
    preview_vae: PreviewVaeOption = None,
    embedding: EmbeddingOption = None,
    lora: LoraOption = None,
    adapter: AdapterOption = None,
    variant: VariantOption = None,
    revision: RevisionOption = None,
    prediction_type: PredictionOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    backend: BackendOption = None,
    precision: ComputeOption = None,
    limit_pixels: Annotated[
        int | None,
        typer.Option(min=1, help="Most pixels of a picture, width times height; else 1048576.", rich_help_panel=MODEL),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.", rich_help_panel=OUTPUT)] = Path("out"),
    explain: Annotated[
        bool, typer.Option("--explain", help="Also draw what each mechanism did.", rich_help_panel=OUTPUT)
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="LOG",
            help="Where the audit log is kept: a file, or the URL of a database; else audit.jsonl in the folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts into the audit log too.", rich_help_panel=OUTPUT)
    ] = False,
    sign: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="CERT KEY",
            help="Give pictures content credentials (C2PA), signed with these PEM files.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    fail_on_refused: Annotated[
        bool, typer.Option("--fail-on-refused", help="Exit with status 3 if any is refused.", rich_help_panel=OUTPUT)
    ] = False,
) -> int:
    """Draw pictures, each with a draft, the mask of its shape, a final that avoids it, and a verdict."""
    seeds = seeds_of(seed)
    wanted = gathered_prompts(prompts or [], prompt_file)
    check_number(wanted, seeds)
    return actions.generate(
        wanted,
        seeds,
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
            calibration=calibration,
            registry=registry,
            limit_pixels=limit_pixels,
            bank=bank,
            metrics=tuple(metric or ()),
            preview_vae=preview_vae,
            prediction_type=prediction_type,
            embeddings=tuple(embedding or ()),
            lora=tuple(lora or ()),
            adapters=tuple(adapter or ()),
        ),
        preset=preset,
        gate=gate,
        warp=warp,
        source=source,
        mask=mask,
        settings=given(
            negative_prompt=negative,
            prompt_syntax=prompt_syntax,
            clip_skip=clip_skip,
            width=width,
            height=height,
            num_images=num_images,
            explain=explain,
        ),
        controls=control or [],
        stage=given(
            steps=steps,
            guidance_scale=guidance,
            guidance_rescale=guidance_rescale,
            solver=solver,
            spacing=spacing,
            sigmas=sigmas,
            eta=eta,
            lora=weighted(use),
            cache_interval=cache_interval,
            cache_rhythm=cache_rhythm,
            **interval_of(guidance_interval),
        ),
        draft=given(solver=draft_solver, guidance_scale=draft_guidance, lora=weighted(draft_use)),
        draft_steps=draft_steps,
        judged=given(retries=retries, rule=rule),
        log=log,
        log_prompts=log_prompts,
        sign=sign,
        manner=Manner(json, quiet),
        fail_on_refused=fail_on_refused,
    )

"""The command `twig inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from . import actions
from .options import (
    AdapterOption,
    BackendOption,
    BankOption,
    ComputeOption,
    ControlNetOption,
    ControlOption,
    DeviceOption,
    EmbeddingOption,
    EngineChoice,
    JsonOption,
    LoraOption,
    Manner,
    MaskOption,
    MetricOption,
    ModelOption,
    PreviewVaeOption,
    RegistryOption,
    SegmenterOption,
    SourceOption,
    VaeOption,
)


def inspect(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="JSON file beside a picture, or a picture alone.")
    ],
    again: Annotated[bool, typer.Option("--replay", help="Generate the picture again and compare.")] = False,
    source: SourceOption = None,
    mask: MaskOption = None,
    control: ControlOption = None,
    registry: RegistryOption = None,
    bank: BankOption = None,
    metric: MetricOption = None,
    model: ModelOption = None,
    controlnet: ControlNetOption = None,
    segmenter: SegmenterOption = None,
    vae: VaeOption = None,
    preview_vae: PreviewVaeOption = None,
    embedding: EmbeddingOption = None,
    lora: LoraOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    backend: BackendOption = None,
    precision: ComputeOption = None,
    json: JsonOption = False,
) -> int:
    """Print a picture's manifest and check picture, log and credentials; with --replay make it again and compare.

    Of a picture alone its content credentials are checked: who signed it, and the digest of its manifest. Exits with
    status 1 where anything is missing from a replay, was altered, or is different.

    A replay takes model, adapters, source, mask and further measures from where the manifest says, unless you name them
    here; a registry, and a bank of shapes that is not the model's own, you name.
    """
    choice = EngineChoice(
        model=model,
        controlnet=controlnet,
        segmenter=segmenter,
        vae=vae,
        device=device,
        backend=backend,
        precision=precision,
        registry=registry,
        bank=bank,
        metrics=tuple(metric or ()),
        preview_vae=preview_vae,
        embeddings=tuple(embedding or ()),
        lora=tuple(lora or ()),
        adapters=tuple(adapter or ()),
    )
    return actions.inspect(
        manifest, choice, again=again, source=source, mask=mask, controls=control or [], manner=Manner(json)
    )

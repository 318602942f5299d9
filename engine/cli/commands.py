"""The commands `twig calibrate` and `twig registry`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from ..api.calibration import Calibration
from ..api.errors import InvalidRequestError
from ..api.event import Event
from ..api.reading import read_lines
from ..api.settings import Solver, Stage
from ..judging.judge import PREFIX
from ..judging.registry import Registry, changing, cropped_pixels, index_works, pictures_in
from ..models.checkpoint import load
from ..models.pictures import load_picture
from ..study.population import calibrated, generated, unrelated
from .options import (
    ControlNetOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    RegistryOption,
    SegmenterOption,
    given,
    load_engine,
    parts_named,
)

DEFAULT_REGISTRY = Path("registry.safetensors")

registry_app = typer.Typer(no_args_is_help=True, help="Protected works that pictures are compared with.")

FileOption = Annotated[Path, typer.Option("--registry", help="The registry's file.")]


def calibrate(
    captions: Annotated[
        Path | None, typer.Option(help="Text file of captions, one a line, of things the model has not memorised.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of your own pictures that have nothing to do with one another.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("calibration.json"),
    per_caption: Annotated[int, typer.Option(min=1, help="Pairs drawn from each caption.")] = 8,
    pairs: Annotated[int, typer.Option(min=1, help="Most pairs compared of the folder's pictures.")] = 2000,
    quantile: Annotated[float, typer.Option(help="Share of the clean pairs that keeps each limit.")] = 0.999,
    metric: Annotated[
        list[str] | None, typer.Option(help="Measure to find a limit of; may be repeated. Else the usual four.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Everything random derives from it.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of each picture; those you will generate with.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; that you will generate with.")] = None,
    solver: Annotated[Solver | None, typer.Option(help="Solver; that you will generate with.")] = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    controlnet: ControlNetOption = None,
    segmenter: SegmenterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> int:
    """Find the limits that clean pictures keep, and the gate's thresholds, on captions or pictures of yours.

    From captions, pairs are drawn without avoidance from fresh seeds; the gate's thresholds come from these alone. Put
    the file into the model's folder as calibration.json, or name it with `twig generate --calibration`.
    """
    if captions is None and pictures is None:
        raise InvalidRequestError("nothing to calibrate on; name captions with --captions, pictures with --pictures")
    if not 0 < quantile < 1:
        raise InvalidRequestError(f"--quantile must lie between 0 and 1, got {quantile}")
    engine = load_engine(
        parts_named(source=model, controlnet=controlnet, segmenter=segmenter), device, dtype, None, registry
    )
    stage = Stage(**given(steps=steps, guidance_scale=guidance, solver=solver))
    populations = []
    if captions is not None:
        lines = read_lines(captions)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("drawing", total=len(lines) * per_caption)

            def advance(event: Event) -> None:
                bar.advance(task, event.result is not None)

            populations.append(generated(engine, lines, per_caption, stage, seed, advance))
    if pictures is not None:
        populations.append(unrelated(engine, pictures, pairs, seed))
    found = calibrated(engine, populations, metric, quantile)
    found.save(out)
    _report(found, out)
    return 0


def _report(found: Calibration, out: Path) -> None:
    for name, limit in found.limits.items():
        print(f"{name:24}{limit:.4g}")
    for name, limit in found.gate.items():
        print(f"{f'gate: {name}':24}{limit:.4g}")
    print(f"{'calibration':24}{found.version}, {found.population}")
    if found.count * (1 - found.quantile) < 1:
        print(
            f"{'note':24}with {found.count} pairs each limit is the most similar pair's; "
            f"{round(1 / (1 - found.quantile))} or more find the {found.quantile:.4g} quantile"
        )
    print(f"{'written':24}{out}")


@registry_app.command("add")
def add(
    works: Annotated[list[Path], typer.Argument(help="Folders of pictures, or pictures.")],
    registry: FileOption = DEFAULT_REGISTRY,
    keep_pictures: Annotated[
        bool, typer.Option("--keep-pictures", help="Keep the pixels too, at the model's size; else none are kept.")
    ] = False,
    model: ModelOption = None,
) -> int:
    """Index protected works: descriptors and the latents of the model's autoencoder, in a file that you alone can read.

    Whoever has the file and the model can decode the latents. A work that is indexed already is left as it is.
    """
    components = load(parts_named(source=model).get("source"))
    paths = [path for folder in works for path in pictures_in(folder)]
    with changing(registry):
        before = Registry.load(registry) if registry.exists() else Registry(components.hashes["vae"])
        after = before.adding(index_works(components, paths, keep_pictures=keep_pictures))
        after.save(registry)
    print(f"{len(after) - len(before)} works added, {len(after)} in {registry}, version {after.version}")
    return 0


@registry_app.command("list")
def list_works(registry: FileOption = DEFAULT_REGISTRY) -> int:
    """Name the works: id, when it was added, the file it came from."""
    for work in Registry.load(registry).works:
        print(f"{work.id}  {work.added}  {work.name!r}")
    return 0


@registry_app.command("remove")
def remove(
    ids: Annotated[list[str], typer.Argument(help="Ids, as `twig registry list` names them.")],
    registry: FileOption = DEFAULT_REGISTRY,
) -> int:
    """Take works out of the registry."""
    with changing(registry):
        after = Registry.load(registry).without(ids)
        after.save(registry)
    print(f"{len(after)} works left in {registry}, version {after.version}")
    return 0


@registry_app.command("check")
def check(
    picture: Annotated[Path, typer.Argument(help="Picture to compare with the works.")],
    registry: FileOption = DEFAULT_REGISTRY,
    model: ModelOption = None,
) -> int:
    """Name the works that a picture is nearest to, with how alike they are."""
    engine = load_engine(parts_named(source=model), "cpu", registry=registry)
    works = engine.registry
    assert works is not None
    pixels = cropped_pixels(load_picture(picture), engine.components.size)
    found = works.nearest(pixels, 5)
    for position, similarity in zip(found.positions[0], found.similarity[0], strict=True):
        print(f"{works.works[position].id}  {similarity:6.3f}  {works.works[position].name!r}")
    if len(works):
        (measured,) = engine.runner.judging.compare(pixels, pixels)
        print(f"nearest: {measured.nearest}")
        for name, value in measured.values.items():
            if name.startswith(PREFIX):
                print(f"{name:30}{value:.4g}")
    return 0

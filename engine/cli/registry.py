"""The commands of `twig registry`."""

from pathlib import Path
from typing import Annotated

import typer

from . import actions
from .options import EngineChoice, JsonOption, Manner, MetricOption, ModelOption
from .plain import PlainCommand

DEFAULT_REGISTRY = Path("registry.safetensors")

registry_app = typer.Typer(no_args_is_help=True, help="Protected works that pictures are compared with.")

FileOption = Annotated[Path, typer.Option("--registry", help="The registry's file.")]


@registry_app.command("add", cls=PlainCommand)
def add(
    works: Annotated[list[Path], typer.Argument(metavar="PICTURE...", help="Folders of pictures, or pictures.")],
    registry: FileOption = DEFAULT_REGISTRY,
    keep_pictures: Annotated[
        bool, typer.Option("--keep-pictures", help="Keep the pixels too, at the model's size; else none are kept.")
    ] = False,
    model: ModelOption = None,
) -> int:
    """Index protected works: descriptors and the latents of the model's autoencoder, in a file that you alone can read.

    Whoever has the file and the model can decode the latents. A work that is indexed already is left as it is. Works
    whose exact copy may score less than limits usually allow are named: the autoencoder does not give them back.

    A file that is no picture is named and passed over; the exit status is then 1.
    """
    return actions.add_works(works, registry, EngineChoice(model), keep_pictures=keep_pictures)


@registry_app.command("list")
def list_works(registry: FileOption = DEFAULT_REGISTRY, json: JsonOption = False) -> int:
    """Name the works: id, when it was added, the ssim_aligned of an exact copy at least, the file it came from."""
    return actions.list_works(registry, Manner(json))


@registry_app.command("remove", cls=PlainCommand)
def remove(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, as `twig registry list` names them.")],
    registry: FileOption = DEFAULT_REGISTRY,
) -> int:
    """Take works out of the registry."""
    return actions.remove_works(ids, registry)


@registry_app.command("check", cls=PlainCommand)
def check(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="Picture to compare with the works.")],
    registry: FileOption = DEFAULT_REGISTRY,
    metric: MetricOption = None,
    model: ModelOption = None,
    json: JsonOption = False,
) -> int:
    """Name the works that a picture is nearest to, with how alike they are."""
    choice = EngineChoice(model, device="cpu", registry=registry, metrics=tuple(metric or ()))
    return actions.check_picture(picture, choice, Manner(json))

"""What `twig registry` does: protected works into a file, out of it, and pictures held against them."""

from collections.abc import Sequence
from pathlib import Path

from ...api.pixels import load_picture
from ...judging.judge import PREFIX
from ...judging.registry import Registry, changing, cropped_pixels, index_works, pictures_in
from ...models.checkpoint import load
from ..options import EngineChoice
from ..status import DONE
from .engines import load_engine


def add_works(works: Sequence[Path], registry: Path, choice: EngineChoice, *, keep_pictures: bool) -> int:
    """Index pictures and folders of pictures by the autoencoder of the model chosen; return the exit code."""
    components = load(choice.parts.get("model"))
    paths = [path for folder in works for path in pictures_in(folder)]
    with changing(registry):
        before = Registry.load(registry) if registry.exists() else Registry(components.hashes["vae"])
        after = before.adding(index_works(components, paths, keep_pictures=keep_pictures))
        after.save(registry)
    print(f"{len(after) - len(before)} works added, {len(after)} in {registry}, version {after.version}")
    return DONE


def list_works(registry: Path) -> int:
    """Print id, time of adding and file name of each work; return the exit code."""
    for work in Registry.load(registry).works:
        print(f"{work.id}  {work.added}  {work.name!r}")
    return DONE


def remove_works(ids: Sequence[str], registry: Path) -> int:
    """Take the works with `ids` out; return the exit code."""
    with changing(registry):
        after = Registry.load(registry).without(ids)
        after.save(registry)
    print(f"{len(after)} works left in {registry}, version {after.version}")
    return DONE


def check_picture(picture: Path, choice: EngineChoice) -> int:
    """Print the works of the registry chosen that `picture` is nearest to; return the exit code."""
    engine = load_engine(choice)
    works = engine.registry
    assert works is not None
    pixels = cropped_pixels(load_picture(picture), engine.components.size)
    found = works.nearest(pixels, 5)
    for position, similarity in zip(found.positions[0], found.similarity[0], strict=True):
        print(f"{works.works[position].id}  {similarity:6.3f}  {works.works[position].name!r}")
    if len(works):
        (measured,) = engine.judge.compare(pixels, pixels)
        print(f"nearest: {measured.nearest}")
        for name, value in measured.values.items():
            if name.startswith(PREFIX):
                print(f"{name:30}{value:.4g}")
    return DONE

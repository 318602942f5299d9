"""What `twig registry` does: protected works into a file, out of it, and pictures held against them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...api.metrics import SHARE
from ...api.pixels import load_picture
from ...judging.judge import PREFIX
from ...judging.own_scores import OWN, missed, usual_limits
from ...judging.registry import (
    Registry,
    Work,
    changing,
    cropped_pixels,
    index_works,
    pictures_in,
)
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
    _warn_of_faint(after.works, usual_limits(components.calibration))
    print(f"{len(after) - len(before)} works added, {len(after)} in {registry}, version {after.version}")
    return DONE


def _warn_of_faint(works: Sequence[Work], limits: Mapping[str, float]) -> None:
    """Name the works whose exact copy may keep a usual limit, and say what catches it."""
    faint = {work: scores for work in works if (scores := missed(work.own, limits))}
    for work, scores in faint.items():
        print(f"twig: an exact copy of {work.name!r} ({work.id}) may score only {', '.join(scores)}", file=sys.stderr)
    if faint:
        print(
            f"twig: rules with such limits miss it: write them relative to each work, {PREFIX}{OWN}{SHARE} > 0.9, and "
            "keep the pixels with --keep-pictures to have copies of the file itself compared with them",
            file=sys.stderr,
        )


def list_works(registry: Path) -> int:
    """Print id, time of adding, what an exact copy scores, and file name of each work; return the exit code."""
    works = Registry.load(registry)
    for work in works.works:
        own = f"{work.own[OWN]:.3f}" if work.own else "?    "
        print(f"{work.id}  {work.added}  {own}  {work.name!r}")
    if works.unmeasured:
        print(
            f"twig: what an exact copy scores is not known of {len(works.unmeasured)} works, added before it was kept; "
            "add them again to have it",
            file=sys.stderr,
        )
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
        if works.unmeasured:
            print("shares of what an exact copy scores are not known: some works were added before it was kept")
        for name, value in measured.values.items():
            if name.startswith(PREFIX):
                print(f"{name:30}{value:.4g}")
    return DONE

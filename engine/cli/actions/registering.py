"""What `twig registry` does: protected works into a file, out of it, and pictures held against them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ...api.errors import InvalidRequestError
from ...api.metrics import SHARE
from ...api.pixels import load_picture
from ...api.writing import check_file
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
from ..options import EngineChoice, Manner
from ..status import DIFFERS, DONE
from .engines import load_engine
from .speaking import write_json


def add_works(works: Sequence[Path], registry: Path, choice: EngineChoice, *, keep_pictures: bool) -> int:
    """Index pictures and folders of pictures by the autoencoder of the model chosen; return the exit code.

    A file that is no picture is named and passed over, which the exit code says.
    """
    paths = [path for folder in works for path in pictures_in(folder)]
    check_file(registry)
    components, bad = load(choice.model), 0

    def passed_over(error: InvalidRequestError) -> None:
        nonlocal bad
        bad += 1
        print(f"twig: passed over: {error}", file=sys.stderr)

    with changing(registry):
        before = Registry.load(registry) if registry.exists() else Registry(components.hashes["vae"])
        after = before.adding(index_works(components, paths, keep_pictures=keep_pictures, passed_over=passed_over))
        after.save(registry)
    _warn_of_faint(after.works, usual_limits(components.calibration))
    print(f"{len(after) - len(before)} works added, {len(after)} in {registry}, version {after.version}")
    return DIFFERS if bad else DONE


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


def list_works(registry: Path, manner: Manner) -> int:
    """Print id, time of adding, what an exact copy scores, and file name of each work; return the exit code."""
    works = Registry.load(registry)
    if manner.json:
        write_json({"version": works.version, "works": [asdict(work) for work in works.works]})
        return DONE
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


def check_picture(picture: Path, choice: EngineChoice, manner: Manner) -> int:
    """Print the works of the registry chosen that `picture` is nearest to; return the exit code."""
    engine = load_engine(choice)
    works = engine.registry
    assert works is not None
    pixels = cropped_pixels(load_picture(picture), engine.components.size)
    found = works.nearest(pixels, 5)
    near = [(works.works[p], float(s)) for p, s in zip(found.positions[0], found.similarity[0], strict=True)]
    nearest, measures = None, {}
    if len(works):
        (measured,) = engine.judge.compare(pixels, pixels)
        nearest = measured.nearest
        measures = {name: value for name, value in measured.values.items() if name.startswith(PREFIX)}
    if manner.json:
        write_json(
            {
                "works": [{"id": work.id, "name": work.name, "similarity": alike} for work, alike in near],
                "nearest": nearest,
                "scores": measures,
            }
        )
        return DONE
    for work, alike in near:
        print(f"{work.id}  {alike:6.3f}  {work.name!r}")
    if nearest is not None:
        print(f"nearest: {nearest}")
        if works.unmeasured:
            print("shares of what an exact copy scores are not known: some works were added before it was kept")
    for name, value in measures.items():
        print(f"{name:30}{value:.4g}")
    return DONE

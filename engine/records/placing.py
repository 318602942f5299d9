"""Where a record is written: under the first of its names that is free, or where it lies already."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..api.errors import RecordError, TwigError
from .naming import SUFFIXES, record_names, same_record
from .secret import Secret

if TYPE_CHECKING:
    from .manifest import Manifest


class Place(NamedTuple):
    """Where a record lies: its manifest's path, its picture's (the manifest's where there is none), the manifest.

    found: whether it was there already.
    """

    path: Path
    picture: Path
    manifest: "Manifest"
    found: bool


def place(unnamed: "Manifest", folder: Path, secret: Secret, may_take: Callable[[Path], bool] | None = None) -> Place:
    """Save a manifest in `folder` under the first of its names that is free, or find it there.

    may_take: whether a picture of the record may be at this path, None where no picture is written beside the manifest.
    Raises RecordError where its names are taken by what is no record of it.
    """
    for name in record_names(unnamed, secret):
        path = folder / f"{name}.json"
        image = None if may_take is None else f"{name}{SUFFIXES.get(unnamed.verdict, '')}.png"
        picture = path if image is None else folder / image
        if may_take is not None and not may_take(picture):
            continue
        manifest = unnamed.model_copy(update={"image": image})
        with suppress(FileExistsError):
            manifest.save(path)
            return Place(path, picture, manifest, found=False)
        found = _manifest(path, type(unnamed))
        if found is not None and same_record(found, manifest) and found.image == image:
            return Place(path, picture, found, found=True)
    raise RecordError(f"{path} and {picture.name} are there and are not of this run; move them away")


def _manifest(path: Path, kind: type["Manifest"]) -> "Manifest | None":
    """The manifest at a path, None for what is none."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return kind.load(path)
    except TwigError:
        return None

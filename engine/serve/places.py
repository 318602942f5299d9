"""Places in the operator's file, which are told from its folder, as those of this process."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from ..api.settings import Settings

Section = TypeVar("Section", bound=Settings)


def told_from(folder: Path, section: Section, names: Iterable[str], **changes: Any) -> Section:
    """A section whose values of these names are places, told from `folder`; `changes`: other values of it."""
    given = {name: value for name in names if (value := getattr(section, name)) is not None}
    places = {name: _place(folder, value) for name, value in given.items()}
    return type(section)(**{**section.model_dump(), **places, **changes})


def metric_from(folder: Path, spec: str) -> str:
    """A further measure, its file told from `folder`."""
    name, _, place = spec.partition("=")
    return f"{name}={folder / Path(place).expanduser()}" if place else spec


def _place(folder: Path, value: Any) -> Any:
    """A place, or several, in a sequence or by name; a text that names nothing there stays what it is, a hub id."""
    if isinstance(value, tuple):
        return tuple(_place(folder, each) for each in value)
    if isinstance(value, dict):
        return {name: _place(folder, each) for name, each in value.items()}
    if isinstance(value, Path):
        return folder / value
    return str(folder / value) if "://" not in value and (folder / value).parent.is_dir() else value

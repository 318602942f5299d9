"""What `twig generate` leaves in a folder."""

from pathlib import Path

PROMPT = "a red star and a blue house"
"""Of the pictures that tests of several commands share."""


def manifests(folder: Path) -> list[Path]:
    """Manifests, in the order of their names."""
    return sorted(path for path in folder.glob("twig-*.json") if "explain" not in path.name)


def pictures(folder: Path) -> list[Path]:
    """Pictures, in the order of their names, without a sheet of all."""
    return sorted(path for path in folder.glob("*.png") if "sheet" not in path.name)

"""What needs more packages than Twig itself does."""

from importlib import import_module
from typing import Any

from ...api.errors import TwigError


def serving(name: str, extra: str = "serve") -> Any:
    """A module of the wing `serve`. Raises TwigError where what it needs, an `extra` of Twig's, is not installed."""
    try:
        return import_module(f"...serve.{name}", __package__)
    except ImportError as error:
        raise TwigError(f"serving needs more packages: pip install 'twig-engine[{extra}]' ({error})") from error

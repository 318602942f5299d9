"""A configuration of diffusers or transformers that was read before: settings as attributes and as items."""

from typing import Any


class Settings(dict[str, Any]):
    """Settings by name."""

    def __getattr__(self, name: str) -> Any:
        """Return the setting `name`; AttributeError where it has none, as `getattr` with a usual value needs."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

"""Whom a server may listen to, found out before anything is loaded."""

import ipaddress

from ..api.errors import InvalidRequestError
from .config import LOOPBACK, ServeConfig
from .keys import Keys


def check(config: ServeConfig) -> None:
    """Find what is wrong with a configuration before a model is loaded.

    Raises InvalidRequestError for a port that the world could reach without keys, and what reading the keys raises.
    """
    if config.listen.keys is None:
        if not is_loopback(config.listen.host):
            raise InvalidRequestError(
                f"listen.host: {config.listen.host} can be reached by others, which takes keys: make one with "
                "`twig keys add` and name their file as listen.keys, or listen to 127.0.0.1"
            )
        return
    if not Keys(config.listen.keys).all():
        raise InvalidRequestError(f"listen.keys: {config.listen.keys} holds no key; make one with `twig keys add`")


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return host in LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

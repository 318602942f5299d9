"""Databases by their URLs: which are served, by which driver, and what of a URL may be shown."""

from typing import Any

from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError

from ..api.errors import RecordError
from ..api.reading import quoted, shown

SERVED = ("sqlite", "postgresql")
"""Databases, as a URL names them."""

PATIENCE = 15.0
"""Seconds that another process's transaction, or a connection, is waited for."""

_HIDDEN = ("pass", "secret", "token", "key")


def served_url(url: str, what: str) -> URL:
    """The URL with the driver that the extra installs. Raises RecordError where `what` cannot be kept there.

    What is wrong may be in its password: it is not told.
    """
    try:
        url.encode()  # a name of bytes that are no text names no database
        found = make_url(url)
        name = found.get_backend_name()
    except (ArgumentError, ValueError):
        name = ""
    if name not in SERVED:
        raise RecordError(
            f"no {what} can be kept at {quoted(shown(url.partition('://')[0], 40))}://...: write "
            "sqlite:///FILE or postgresql://USER@HOST/DATABASE, special characters in a password as %40"
        )
    return found.set(drivername="postgresql+psycopg") if found.drivername == "postgresql" else found


def without_secrets(url: URL) -> str:
    """The URL as it may be shown: without its password, and without what stands for one behind the question mark."""
    hidden = {name: "***" for name in url.query if any(word in name.lower() for word in _HIDDEN)}
    return url.update_query_dict(hidden).render_as_string()


def patience(url: URL) -> dict[str, Any]:
    """Arguments of a driver's `connect`: nobody is waited for longer than `PATIENCE`, unless the URL says so."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": PATIENCE}
    return {} if "connect_timeout" in url.query else {"connect_timeout": round(PATIENCE)}


def limit_waiting(connection: Connection) -> None:
    """Have the transaction that has begun wait at most `PATIENCE` for the locks of others; SQLite does by itself."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(1000 * PATIENCE)}")

"""The audit log in a database, by SQLAlchemy: SQLite for one machine, PostgreSQL for several.

A row is a line as `chain.written` writes it. Whoever appends holds the database's own lock from reading the last line
until its own is committed, and two lines after one are refused by the table, so that the chain cannot fork. What lines
are searched by is indexed where it stands in their text: it is kept once, and no copy of it can differ.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..api.errors import RecordError, UnreachableError
from ..api.reading import shown
from ..api.writing import check_folder, open_own
from .chain import BEGINNING, Head, Line, digest_of, linked, parsed, without_erasable, written
from .databases import limit_waiting, patience, served_url, without_secrets
from .secret import Secret
from .stores import Query

_TABLES = MetaData()
_LINES = Table(
    "twig_audit_lines",
    _TABLES,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("previous", String(64), nullable=False, unique=True),
    Column("text", Text, nullable=False),
)
_HEAD = Table(
    "twig_audit_head",
    _TABLES,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("secret", String(16), nullable=False),
    Column("seal", String(64), nullable=False),
)

_SEARCHED = ("prompt_hmac", "manifest_sha256", "verdict", "nearest", "model_sha256", "time")
_FOUND = {
    "sqlite": "CASE WHEN json_valid(text) THEN json_extract(text, '$.{}') END",
    "postgresql": """((text::json ->> '{}') COLLATE "C")""",
}
"""How a database finds a value in a line's text. PostgreSQL lets nobody write one that is no JSON."""

_FEW = 1000  # values that a statement names at once
_LARGEST = 2**63 - 1

_LOCK = 0x54574947  # names our lock among a PostgreSQL database's advisory locks


class SqlStore:
    """An `AuditStore` in the database at `url`; what it says of itself leaves the password out."""

    def __init__(self, url: str, secret: Secret) -> None:
        self._secret = secret
        self._url = served_url(url, "audit log")
        self.place = without_secrets(self._url)
        self._prepared = False
        try:
            self._engine = _engine(self._url)
        except (ArgumentError, ImportError, TypeError, ValueError) as error:
            raise RecordError(f"no audit log can be kept at {self.place}: {shown(error)}") from error

    def check(self) -> None:
        """See `AuditStore`: a line is written and taken back."""
        if self._file is not None:
            check_folder(self._file.parent)
        with self._transaction() as connection:
            point = connection.begin_nested()
            self._append(connection, {})
            point.rollback()

    def append(self, body: Mapping[str, Any]) -> Line:
        """See `AuditStore`."""
        with self._transaction() as connection:
            return self._append(connection, body)

    def forget(self, numbers: Collection[int], body: Mapping[str, Any]) -> Line:
        """See `AuditStore`."""
        with self._transaction() as connection:
            for some in _batches(numbers):
                rows = connection.execute(select(_LINES.c.number, _LINES.c.text).where(_LINES.c.number.in_(some)))
                for number, text in rows.all():
                    if (line := parsed(text)) is not None:
                        change = update(_LINES).where(_LINES.c.number == number)
                        connection.execute(change.values(text=written(without_erasable(line))))
            return self._append(connection, body)

    def texts(self) -> Iterator[bytes]:
        """See `AuditStore`."""
        with self._reading() as connection:
            rows = connection.execution_options(yield_per=1000).execute(select(_LINES.c.text).order_by(_LINES.c.number))
            for (text,) in rows:
                yield text.encode() if isinstance(text, str) else bytes(text or b"")

    def find(self, query: Query) -> Iterator[Line]:
        """See `AuditStore`. The database finds by its indices the rows that may match."""
        wanted = select(_LINES.c.text).order_by(_LINES.c.number)
        if conditions := list(self._narrowed(query)):
            wanted = wanted.where(_LINES.c.number.in_(select(_LINES.c.number).where(*conditions)))
        some: Iterable[list[int] | None] = [None] if query.numbers is None else _batches(query.numbers)
        with self._reading() as connection:
            for numbers in some:
                chosen = wanted if numbers is None else wanted.where(_LINES.c.number.in_(numbers))
                for (text,) in connection.execution_options(yield_per=1000).execute(chosen):
                    line = parsed(text)
                    if line is not None and query.matches(line):
                        yield line

    def _narrowed(self, query: Query) -> Iterator[ColumnElement[bool]]:
        """Conditions that whatever `query` matches fulfils; times are told to the second, `Query.matches` says more."""
        found: dict[str, ColumnElement[Any]] = {name: literal_column(self._found(name)) for name in _SEARCHED}
        for name in ("prompt_hmac", "manifest_sha256", "verdict", "nearest"):
            if (value := getattr(query, name)) is not None:
                yield found[name] == str(value)
        if query.model is not None:
            yield found["model_sha256"] >= query.model
            yield found["model_sha256"] < query.model + "g"  # what follows is hexadecimal
        if query.since is not None:
            yield found["time"] >= _second(query.since)
        if query.until is not None:
            yield found["time"] < _second(query.until) + "~"  # beyond whatever a time of that second goes on with

    def _found(self, name: str) -> str:
        return _FOUND[self._url.get_backend_name()].format(name)

    def _prepare(self, connection: Connection) -> None:
        """Make the tables and their indices where there are none."""
        if self._prepared:
            return
        _TABLES.create_all(connection)
        for name in _SEARCHED:
            index = f"CREATE INDEX IF NOT EXISTS twig_audit_{name} ON {_LINES.name} (({self._found(name)}), number)"
            connection.exec_driver_sql(index)
        self._prepared = True

    def head(self) -> Head | None:
        """See `AuditStore`."""
        with self._reading() as connection:
            return _head(connection)

    @property
    def _file(self) -> Path | None:
        """The file that SQLite keeps it in."""
        inside = self._url.get_backend_name() == "sqlite" and self._url.database not in (None, "", ":memory:")
        return Path(str(self._url.database)) if inside else None

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A transaction that alone may change the log, in a database that has the log's tables."""
        if self._file is not None:
            with open_own(self._file, create=True):  # SQLite would follow a link, and heed the umask
                pass
        with self._connected(writes=True) as connection, connection.begin():
            limit_waiting(connection)
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            self._prepare(connection)
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._file is not None:
            if not self._file.exists():
                raise RecordError(f"there is no audit log at {self._file}")
            with open_own(self._file):
                pass
        with self._connected(writes=False) as connection:
            yield connection

    @contextmanager
    def _connected(self, writes: bool) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection.execution_options(writes=writes)
        except SQLAlchemyError as error:
            self._prepared = False  # a table may be gone
            problem = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise UnreachableError(f"the audit log at {self.place} cannot be used: {shown(problem)}") from error

    def _append(self, connection: Connection, body: Mapping[str, Any]) -> Line:
        line = linked(body, *self._end(connection))
        values = {"number": line["number"], "previous": line["previous"], "text": written(line)}
        connection.execute(insert(_LINES).values(values))
        connection.execute(delete(_HEAD))
        connection.execute(insert(_HEAD).values(Head.of(line, self._secret).model_dump()))
        return line

    def _end(self, connection: Connection) -> tuple[int, str]:
        """Number of the next line and digest of the last, which must be where the head says."""
        text = connection.execute(select(_LINES.c.text).order_by(_LINES.c.number.desc()).limit(1)).scalar()
        last, head = parsed(text) if text is not None else None, _head(connection)
        if text is None and head is None:
            return 1, BEGINNING
        if head is not None and head.secret != self._secret.name:
            raise RecordError(
                f"{self.place} was begun with another secret than this installation's; name the file that holds it "
                "with TWIG_SECRET, or keep another log"
            )
        whole = last is not None and head is not None and digest_of(last) == last["digest"] == head.digest
        if last is None or head is None or not whole or not head.sealed_by(self._secret):
            raise RecordError(
                f"{self.place} does not end where its head says: it was altered; `twig audit verify` says what is left"
            )
        return last["number"] + 1, last["digest"]


def _head(connection: Connection) -> Head | None:
    row = connection.execute(select(_HEAD)).mappings().first()
    try:
        return None if row is None else Head(**row)
    except ValidationError as error:
        raise RecordError("what the database holds is no head of an audit log; it was altered") from error


def _second(time: datetime) -> str:
    """How the texts of times begin that lie in the same second, in UTC as all lines are."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds")


def _batches(numbers: Collection[int]) -> Iterator[list[int]]:
    """Numbers that lines can have, in order, as many at a time as a statement takes."""
    rows = iter(sorted(number for number in numbers if 0 < number <= _LARGEST))
    while some := list(islice(rows, _FEW)):
        yield some


def _engine(url: URL) -> Engine:
    """An engine that keeps no connection: a server that began anew, or a process that was forked, finds none broken."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, connect_args=patience(url), poolclass=NullPool)
    engine = create_engine(url, connect_args=patience(url), poolclass=NullPool)
    event.listen(engine, "connect", _leave_transactions_to_us)
    event.listen(engine, "begin", _begin)
    return engine


def _leave_transactions_to_us(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # Python's own module begins them too late to read under the lock


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

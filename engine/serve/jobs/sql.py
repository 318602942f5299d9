"""Jobs in a database, by SQLAlchemy: SQLite for one machine, PostgreSQL for several.

A job is taken by one statement that finds it and marks it, so that no two servers take the same.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    bindparam,
    create_engine,
    delete,
    func,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool
from sqlalchemy.sql.dml import ReturningUpdate

from ...api.errors import RecordError, UnreachableError
from ...api.reading import shown
from ...api.writing import check_folder, open_own
from ...records.databases import limit_waiting, patience, served_url, without_secrets
from .store import Claim, Job, Status

_TABLES = MetaData()

_JOBS = Table(
    "twig_jobs",
    _TABLES,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False, index=True),
    Column("status", String(16), nullable=False, index=True),
    Column("attempts", Integer, nullable=False),
    Column("code", Integer),
    Column("owner", String(64)),
    Column("until", Float),
)
_KEYS = Table(
    "twig_idempotency",
    _TABLES,
    Column("name", String(96), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("updated", Float, nullable=False, index=True),
    Column("code", Integer),
    Column("owner", String(64)),
    Column("until", Float),
)
_KEPT = [_JOBS.c[name] for name in ("id", "tenant", "priority", "created", "updated", "status", "attempts", "code")]
_LIVE = (Status.QUEUED, Status.RUNNING)

_TRIAL = "trial"
"""A key that nobody has, by which is tried whether one can be kept."""

_LEASES = 10.0
"""Leases that one may end ahead of now: machines that share a database may differ by that in their clocks."""


def _ran_out(table: Table, now: Any, far: Any) -> ColumnElement[bool]:
    """Whether a lease is over: its time has come, or lies so far ahead that it was told by a clock that went back."""
    return or_(table.c.until < now, table.c.until > far)


def _far(now: float, until: float) -> float:
    """A time that no lease reaches that is given for as long as from `now` to `until`, but by a clock that is wrong."""
    return now + _LEASES * (until - now)


def _taking() -> ReturningUpdate[Any]:
    """The statement of `take`, made once, for an idle server asks every second."""
    gone = and_(_JOBS.c.owner != bindparam("taker"), _ran_out(_JOBS, bindparam("now"), bindparam("far")))
    left = and_(_JOBS.c.status == Status.RUNNING, gone)
    first = (
        select(_JOBS.c.id)
        .where(or_(_JOBS.c.status == Status.QUEUED, left))
        .order_by(_JOBS.c.priority.desc(), _JOBS.c.created)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    held: dict[str, Any] = {"owner": bindparam("taker"), "until": bindparam("end"), "updated": bindparam("now")}
    change = update(_JOBS).where(_JOBS.c.id == first)
    return change.values(status=Status.RUNNING.value, attempts=_JOBS.c.attempts + 1, **held).returning(*_KEPT)


_TAKE = _taking()


class SqlJobs:
    """A `JobStore` in the database at `url`."""

    def __init__(self, url: str) -> None:
        served = served_url(url, "jobs")
        self.place = without_secrets(served)
        in_file = served.get_backend_name() == "sqlite"
        self._file = Path(str(served.database)) if in_file else None
        try:
            # A file that is held open could be another by now; a database may have been started again.
            pool = {"poolclass": NullPool} if in_file else {"pool_pre_ping": True}
            self._engine = create_engine(served, connect_args=patience(served), **pool)
        except (ArgumentError, ImportError, TypeError, ValueError) as error:
            raise RecordError(f"no jobs can be kept at {self.place}: {shown(error)}") from error
        self._insert = (sqlite if in_file else postgresql).insert

    def check(self) -> None:
        """See `JobStore`."""
        if self._file is not None:
            check_folder(self._file.parent)
            with open_own(self._file, create=True):  # SQLite would heed the umask
                pass
        with self._transaction() as connection:
            _TABLES.create_all(connection)
            connection.execute(
                self._insert(_KEYS).values(name=_TRIAL, fingerprint="", updated=0.0).on_conflict_do_nothing()
            )
        self.delete([_TRIAL])  # it could be written

    def add(self, job: Job) -> bool:
        """See `JobStore`."""
        values = {**vars(job), "status": job.status.value}
        with self._transaction() as connection:
            made = self._insert(_JOBS).values(values).on_conflict_do_nothing().returning(_JOBS.c.id)
            return connection.execute(made).first() is not None

    def find(self, id: str) -> Job | None:
        """See `JobStore`."""
        with self._transaction() as connection:
            return _job(connection.execute(select(*_KEPT).where(_JOBS.c.id == id)))

    def waiting(self, tenant: str | None = None) -> int:
        """See `JobStore`."""
        with self._transaction() as connection:
            count = select(func.count()).select_from(_JOBS).where(_JOBS.c.status == Status.QUEUED)
            if tenant is not None:
                count = count.where(_JOBS.c.tenant == tenant)
            return int(connection.execute(count).scalar_one())

    def take(self, owner: str, now: float, until: float) -> Job | None:
        """See `JobStore`."""
        values = {"taker": owner, "now": now, "end": until, "far": _far(now, until)}
        with self._transaction() as connection:
            return _job(connection.execute(_TAKE, values))

    def renew(self, owner: str, until: float, keys: Collection[str] = ()) -> frozenset[str]:
        """See `JobStore`."""
        with self._transaction() as connection:
            held = and_(_JOBS.c.owner == owner, _JOBS.c.status == Status.RUNNING)
            jobs = connection.execute(update(_JOBS).where(held).values(until=until).returning(_JOBS.c.id))
            ids = frozenset(jobs.scalars())
            if keys:
                held = and_(_KEYS.c.name.in_(keys), _KEYS.c.owner == owner, _KEYS.c.code.is_(None))
                connection.execute(update(_KEYS).where(held).values(until=until))
            return ids

    def finish(self, id: str, owner: str, code: int, now: float) -> bool:
        """See `JobStore`."""
        return self._move(id, owner, now, status=Status.DONE.value, code=code)

    def release(self, id: str, owner: str, now: float) -> None:
        """See `JobStore`."""
        self._move(id, owner, now, status=Status.QUEUED.value, attempts=_JOBS.c.attempts - 1)

    def cancel(self, id: str, now: float) -> bool:
        """See `JobStore`."""
        live = and_(_JOBS.c.id == id, _JOBS.c.status.in_(_LIVE))
        values = {"status": Status.CANCELLED.value, "updated": now, "owner": None, "until": None}
        with self._transaction() as connection:
            return connection.execute(update(_JOBS).where(live).values(values)).rowcount == 1

    def claim(self, name: str, fingerprint: str, owner: str, now: float, until: float) -> Claim | None:
        """See `JobStore`."""
        values = {"fingerprint": fingerprint, "updated": now, "owner": owner, "until": until}
        left = and_(_KEYS.c.code.is_(None), or_(_KEYS.c.owner == owner, _ran_out(_KEYS, now, _far(now, until))))
        insert = self._insert(_KEYS).values(name=name, **values)
        taken = insert.on_conflict_do_update(index_elements=[_KEYS.c.name], set_=values, where=left)
        with self._transaction() as connection:
            if connection.execute(taken.returning(_KEYS.c.name)).first() is not None:
                return None
            row = connection.execute(
                select(_KEYS.c.name, _KEYS.c.fingerprint, _KEYS.c.code).where(_KEYS.c.name == name)
            )
            return Claim(*row.one())

    def answer(self, name: str, owner: str, code: int, now: float) -> None:
        """See `JobStore`."""
        held = and_(_KEYS.c.name == name, _KEYS.c.owner == owner)
        with self._transaction() as connection:
            connection.execute(update(_KEYS).where(held).values(code=code, updated=now))

    def unclaim(self, name: str, owner: str) -> None:
        """See `JobStore`."""
        with self._transaction() as connection:
            held = and_(_KEYS.c.name == name, _KEYS.c.owner == owner, _KEYS.c.code.is_(None))
            connection.execute(delete(_KEYS).where(held))

    def old(self, before: float, most: int) -> list[str]:
        """See `JobStore`."""
        ended = and_(_JOBS.c.updated < before, _JOBS.c.status.not_in(_LIVE))
        answered = and_(_KEYS.c.updated < before, _KEYS.c.code.is_not(None))
        jobs = select(_JOBS.c.id.label("id"), _JOBS.c.updated.label("updated")).where(ended)
        keys = select(_KEYS.c.name, _KEYS.c.updated).where(answered)
        both = union_all(jobs, keys).subquery()
        with self._transaction() as connection:
            return list(connection.execute(select(both.c.id).order_by(both.c.updated).limit(most)).scalars())

    def delete(self, ids: Collection[str]) -> None:
        """See `JobStore`."""
        with self._transaction() as connection:
            connection.execute(delete(_JOBS).where(_JOBS.c.id.in_(ids)))
            connection.execute(delete(_KEYS).where(_KEYS.c.name.in_(ids)))

    def _move(self, id: str, owner: str, now: float, **values: Any) -> bool:
        held = and_(_JOBS.c.id == id, _JOBS.c.owner == owner, _JOBS.c.status == Status.RUNNING)
        change = update(_JOBS).where(held).values(updated=now, owner=None, until=None, **values)
        with self._transaction() as connection:
            return connection.execute(change).rowcount == 1

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._file is not None and not self._file.exists():  # SQLite would make an empty one
            raise UnreachableError(f"the jobs at {self.place} are gone")
        try:
            with self._engine.begin() as connection:
                limit_waiting(connection)
                yield connection
        except SQLAlchemyError as error:
            problem = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise UnreachableError(f"the jobs at {self.place} cannot be used: {problem}") from error


def _job(rows: CursorResult[Any]) -> Job | None:
    row = rows.mappings().first()
    return None if row is None else Job(**{**row, "status": Status(row["status"])})

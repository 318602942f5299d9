"""What records are tested with: a certificate to sign with, places to keep a log in, a log."""

from pathlib import Path

import pytest
from certificates import signing  # noqa: F401 - a fixture

from twig.engine.records.audit import AuditLog
from twig.engine.records.manifest import Manifest


@pytest.fixture(params=["jsonl", "sqlite", "postgresql"])
def place(request, tmp_path):
    """Where a log is kept that nobody has written to yet: a file, or a database's URL."""
    if request.param == "jsonl":
        return tmp_path / "audit.jsonl"
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'audit.db'}"
    url = request.getfixturevalue("postgresql")
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS twig_audit_lines, twig_audit_head")
    engine.dispose()
    return url


@pytest.fixture
def write(tmp_path, make_result, model):
    """Append the line of a result to a log and return the log's path; the manifest is new each time."""
    made = []

    def append(result=None, **options) -> Path:
        path = tmp_path / f"twig-{len(made):032x}-0.json"
        made.append(path)
        Manifest.of(result or make_result(), model, image="a.png").save(path)
        log = AuditLog(tmp_path / "audit.jsonl", **options)
        log.append(Manifest.load(path), path)
        return log.path

    return append


@pytest.fixture
def log(write):
    """A log of nine whole lines."""
    for _ in range(8):
        write()
    return write()

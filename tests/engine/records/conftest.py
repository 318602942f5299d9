"""What records are tested with: a certificate to sign with, places to keep a log in."""

import pytest
from certificates import signing  # noqa: F401 - a fixture


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

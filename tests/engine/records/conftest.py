"""What records are tested with: a certificate to sign with, a PostgreSQL server, places to keep a log in."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def certificate(subject, issuer, key, signed_by, extensions):
    """A certificate of a year around now."""
    x509 = pytest.importorskip("cryptography.x509")
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=_name(issuer), subject_name=_name(subject), public_key=key.public_key(),
        serial_number=x509.random_serial_number(), not_valid_before=now - timedelta(1),
        not_valid_after=now + timedelta(365),
    )  # fmt: skip
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    from cryptography.hazmat.primitives.hashes import SHA256

    return builder.sign(signed_by, SHA256())


def _name(common):
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = {NameOID.COUNTRY_NAME: "DE", NameOID.ORGANIZATION_NAME: "Test studio", NameOID.COMMON_NAME: common}
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts.items()])


@pytest.fixture(scope="session")
def signing(tmp_path_factory) -> tuple[Path, Path]:
    """Files of a certificate, with its authority's after it, and its private key."""
    pytest.importorskip("c2pa", reason="c2pa-python is not installed")
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    def usage(*used):
        return x509.KeyUsage(**{name: name in used for name in USAGES})

    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    known = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    root = certificate(
        "Test authority", "Test authority", authority, authority,
        [(x509.BasicConstraints(True, None), True), (usage("key_cert_sign", "crl_sign"), True), (known, False)],
    )  # fmt: skip
    leaf = certificate(
        "Test signer", "Test authority", key, authority,
        [
            (x509.BasicConstraints(False, None), True),
            (usage("digital_signature"), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), True),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known), False),
        ],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("signing")
    pem = serialization.Encoding.PEM
    (folder / "chain.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    plain = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(plain)
    return folder / "chain.pem", folder / "key.pem"


class CannotStartError(Exception):
    """No server can be started here, and why."""


def programs() -> Path:
    """Folder of `initdb` and `pg_ctl`: on the path, or where Debian keeps those of its newest version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("pg_ctl")
    if not found and not on_path:
        raise CannotStartError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent


def _run(command: list[str], user: str | None) -> None:
    done = subprocess.run(
        command, user=user, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise CannotStartError(f"{command[0]}: {done.stdout.decode(errors='replace').strip()[-300:]}")


@contextmanager
def server() -> Iterator[str]:
    """Start a server that listens on a socket in its own folder alone; yield the URL of its database.

    PostgreSQL will not run as root: then it runs as the user its package made.
    """
    folder_of_programs = programs()
    user = "postgres" if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="pg", dir="/tmp") as name:  # a socket's path has at most 107 characters
        folder = Path(name)
        if user is not None:
            try:
                os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
            except KeyError as error:
                raise CannotStartError(f"there is no user {user} to run the server as") from error
        data = folder / "data"
        _run([f"{folder_of_programs}/initdb", "-D", str(data), "-U", "twig", "-A", "trust", "--no-sync"], user)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c shared_buffers=16MB"
        control = [f"{folder_of_programs}/pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log")]
        _run([*control, "-o", options, "start"], user)
        try:
            yield f"postgresql://twig@/postgres?host={folder}"
        finally:
            _run([*control, "-m", "immediate", "stop"], user)


@pytest.fixture(scope="session")
def postgresql():
    """URL of a database on a server of this run's own."""
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    try:
        with server() as url:
            yield url
    except CannotStartError as error:
        pytest.skip(str(error))


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

"""A certificate to sign with, and its key."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

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

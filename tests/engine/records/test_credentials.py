import io

import numpy as np
import pytest
from PIL import Image

from twig.engine.api.errors import InvalidRequestError, RecordError
from twig.engine.records.credentials import Signer, credentials_of
from twig.engine.records.pictures import png

MANIFEST, MODEL = "ab" * 32, "cd" * 32


@pytest.fixture(scope="module")
def signed(signing):
    """A picture's PNG and the same signed."""
    picture = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    return picture, Signer.load(*signing).sign(picture, MANIFEST, MODEL)


def test_a_signed_picture_says_whose_it_is_and_which_record_it_belongs_to(signed):
    found = credentials_of(signed[1])
    assert found.valid
    assert not found.trusted, "the test's authority is on nobody's list"
    assert found.problems == ()
    assert (found.signer, found.issuer) == ("Test signer", "Test studio")
    assert (found.manifest_sha256, found.model_sha256) == (MANIFEST, MODEL)


def test_pixels_and_xmp_stay_and_the_source_type_is_said_twice(signed):
    before, after = (Image.open(io.BytesIO(data)) for data in signed)
    assert before.tobytes() == after.tobytes()
    assert "trainedAlgorithmicMedia" in after.info["XML:com.adobe.xmp"]
    assert signed[1].count(b"trainedAlgorithmicMedia") == 2


@pytest.mark.parametrize("chunk", [b"IDAT", b"caBX"])
def test_a_changed_byte_is_found(signed, chunk):
    changed = bytearray(signed[1])
    changed[changed.find(chunk) + 400] ^= 1
    try:
        found = credentials_of(bytes(changed))
    except RecordError:
        return
    assert not found.valid
    assert found.problems


def test_a_picture_without_credentials_has_none(signed):
    assert credentials_of(signed[0]) is None


def test_what_cannot_sign_is_found_before_anything_is_drawn(signing, tmp_path):
    chain, key = signing
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(InvalidRequestError, match=r"key\.pem is no private key"):
        Signer.load(chain, tmp_path / "key.pem")
    (tmp_path / "chain.pem").write_text("no certificate")
    with pytest.raises(InvalidRequestError, match=r"chain\.pem and .* cannot sign a picture"):
        Signer.load(tmp_path / "chain.pem", key)


def test_a_key_of_another_certificate_cannot_sign(signing, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "key.pem").write_bytes(other)
    with pytest.raises(InvalidRequestError, match="cannot sign"):
        Signer.load(signing[0], tmp_path / "key.pem")


def test_a_key_is_not_shown(signing):
    assert "PRIVATE KEY" not in repr(Signer.load(*signing))

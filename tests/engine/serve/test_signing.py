"""Content credentials in what a server delivers and keeps, and in what it does not."""

import base64
import io

import pytest
from PIL import Image

from servers import running
from twig.engine.api.errors import InvalidRequestError
from twig.engine.cli.main import run
from twig.engine.cli.status import DIFFERS, DONE, USER_ERROR
from twig.engine.records.credentials import credentials_of
from twig.engine.records.manifest import Manifest, pixel_hash
from twig.engine.records.model_record import ModelRecord
from twig.engine.serve.app import application

PROMPT = "a red star"


@pytest.fixture(scope="module")
def signed(served_engine, plain_config, signing, tmp_path_factory):
    """A server that signs, and its folder of records."""
    folder = tmp_path_factory.mktemp("signed")
    with running(served_engine, plain_config.with_("records", folder=folder, sign=signing, pictures=True)) as server:
        yield server, folder


def draw(server, format="png", **twig):
    (item,) = server.client().images.generate(prompt=PROMPT, output_format=format, extra_body={"twig": twig}).data
    return base64.b64decode(item.b64_json), item.twig


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_picture_says_who_answers_for_it_and_which_record_is_its_own(signed, served_engine, format):
    picture, told = draw(signed[0], format, draft=True)
    found = credentials_of(picture)
    assert (found.valid, found.signer) == (True, "Test signer")
    assert told["signed"], "the answer says so"
    assert found.manifest_sha256 == told["manifest_sha256"]
    assert found.model_sha256 == ModelRecord.of(served_engine.components).sha256
    assert picture.count(b"trainedAlgorithmicMedia") >= 2, "in the packet as in the credentials"
    assert credentials_of(base64.b64decode(told["draft"])) is None, "a draft is no picture of a record"


def test_streams_and_kept_pictures_are_signed_too(signed):
    server, folder = signed
    *_, done = server.client().images.generate(prompt=PROMPT, stream=True, extra_body={"twig": {"seed": 8}})
    told = done.model_extra["twig"]
    kept = (folder / Manifest.load(folder / f"{told['record']}.json").image).read_bytes()
    for picture in (base64.b64decode(done.b64_json), kept):
        assert credentials_of(picture).manifest_sha256 == told["manifest_sha256"]


def test_a_picture_from_an_answer_is_inspected_with_its_record(signed, tmp_path, capsys):
    server, folder = signed
    picture, told = draw(server, seed=9)
    content = (folder / f"{told['record']}.json").read_bytes()
    (tmp_path / f"{told['record']}.json").write_bytes(content)
    manifest = Manifest.load(tmp_path / f"{told['record']}.json")
    (tmp_path / manifest.image).write_bytes(picture)
    assert pixel_hash(Image.open(io.BytesIO(picture))) == manifest.hashes.image
    assert run(["inspect", str(tmp_path / f"{told['record']}.json")]) == DONE
    assert 'credentials   valid, signed by "Test signer"' in capsys.readouterr().out


def test_a_picture_alone_names_its_manifest(signed, served, tmp_path, capsys):
    picture, told = draw(signed[0], "jpeg")
    (tmp_path / "mine.jpg").write_bytes(picture)
    assert run(["inspect", str(tmp_path / "mine.jpg")]) == DONE
    assert f'of the manifest whose SHA-256 is "{told["manifest_sha256"]}"' in capsys.readouterr().out
    assert run(["inspect", "--replay", str(tmp_path / "mine.jpg")]) == USER_ERROR
    (tmp_path / "plain.webp").write_bytes(draw(served, "webp")[0])
    assert run(["inspect", str(tmp_path / "plain.webp")]) == DIFFERS
    assert "there are none" in capsys.readouterr().out


def test_without_a_certificate_there_are_none_and_with_a_wrong_one_no_server(
    served, served_engine, plain_config, tmp_path
):
    picture, told = draw(served)
    assert (credentials_of(picture), told["signed"]) == (None, False)
    for name in ("chain.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    sign = (tmp_path / "chain.pem", tmp_path / "key.pem")
    with pytest.raises(InvalidRequestError, match=r"key\.pem is no private key"):
        application([served_engine], plain_config.with_("records", sign=sign))

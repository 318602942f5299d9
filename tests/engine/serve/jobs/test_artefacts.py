"""What every place of artefacts promises, in a folder and in S3-compatible storage."""

import boto3
import pytest
from moto import mock_aws

from twig.engine.api.errors import RecordError
from twig.engine.serve.jobs.artefacts import open_artefacts


@pytest.fixture(params=["folder", "s3"])
def artefacts(request, tmp_path, monkeypatch):
    if request.param == "folder":
        yield open_artefacts(str(tmp_path / "kept"))
        return
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="pictures")
        yield open_artefacts("s3://pictures/twig")


def test_what_is_kept_is_kept_once_and_found_again(artefacts):
    artefacts.check()
    assert artefacts.put("job-1-answer", b"first")
    assert not artefacts.put("job-1-answer", b"second")
    assert artefacts.get("job-1-answer") == b"first"
    assert artefacts.get("job-2-answer") is None
    artefacts.delete(["job-1-answer", "job-2-answer"])
    assert artefacts.get("job-1-answer") is None
    assert artefacts.put("job-1-answer", b"third")


def test_a_folder_shows_prompts_to_its_owner_alone(tmp_path):
    kept = open_artefacts(str(tmp_path / "kept"))
    kept.check()
    kept.put("a", b"x")
    assert (tmp_path / "kept" / "a").stat().st_mode & 0o777 == 0o600


@mock_aws
def test_a_bucket_that_there_is_not_says_so(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(RecordError, match="s3://nowhere"):
        open_artefacts("s3://nowhere").check()
